// Checksums: XXH3 where speed matters (shards, fingerprints), SHA-256 where a person may compare with
// sha256sum.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace sinklora {

uint64_t xxh3_64(std::string_view bytes);
std::string xxh3_128_of_file(const std::filesystem::path& path);  // 32 hex digits
std::string sha256(std::span<const std::byte> bytes);             // 64 hex digits
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace sinklora
