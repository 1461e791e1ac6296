// A dataset in words, for `inspect`.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>

#include "data/tokenizer.h"

namespace sinklora {

struct InspectOptions {
  int64_t context = 0;     // cuts a token stream into samples; 0: shards know their own, a stream is not cut
  int64_t samples = 0;     // that many are printed, tokens and labels side by side
  int64_t positions = 64;  // of each sample, at most
};

// Whether `path` is a directory of shards, a shard, or a token stream.
bool is_dataset(const std::filesystem::path& path);

// Reads every sample once, so all that a reader checks has been checked. `tokenizer` may be null: ids only.
void inspect_dataset(const std::filesystem::path& path, const InspectOptions& options,
                     const Tokenizer* tokenizer, std::FILE* out);

// Reads every sample; throws Error(input) on the first that is broken, and returns a description.
std::string verify_dataset(const std::filesystem::path& path);

}  // namespace sinklora
