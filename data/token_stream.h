// All tokens of a data set behind one another, as the sliding perplexity protocol wants them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace sinklora {

// A .bin stream as it is, or the real tokens of every row of shards (made for any context). Throws Error(input) on an
// id at or above `vocab_size`.
std::vector<int32_t> read_token_stream(const std::filesystem::path& path, int64_t vocab_size);

}  // namespace sinklora
