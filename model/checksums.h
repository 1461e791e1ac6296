// SHA256SUMS, as sha256sum writes and reads it: what a checkpoint's files were when it was saved.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace sinklora {

void write_sums(const std::filesystem::path& directory);  // of all files that are there

// Compares the files that SHA256SUMS lists, or only the `names` of them. Throws Error(input) when a sum differs
// or a listed file is missing; with `names`, a directory without SHA256SUMS passes, and lines in other styles than
// ours are passed over.
void verify_sums(const std::filesystem::path& directory);
void verify_sums(const std::filesystem::path& directory, const std::vector<std::string>& names);

}  // namespace sinklora
