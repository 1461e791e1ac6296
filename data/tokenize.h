// Input files -> a directory of HDF5 shards with a manifest, in bounded memory and with several threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/encode.h"
#include "data/packer.h"
#include "data/tokenizer.h"

namespace sinklora {

struct TokenizeOptions {
  std::vector<std::filesystem::path> inputs;
  std::filesystem::path out;
  EncodeOptions encode;  // its `context` is the length of a row
  Packing packing = Packing::stream;
  int64_t rows_per_shard = 0;  // 0: about 256 MiB before compression; a shard is built in memory
  int64_t workers = 1;
  bool show_progress = true;
};

struct TokenizeSummary {
  int64_t rows = 0, tokens = 0, scored_tokens = 0, shards = 0;
  int64_t documents = 0;  // that are in the rows, cut ones included
  int64_t truncated = 0, dropped = 0;
  int64_t prompt_fills = 0;  // of the dropped: the prompt leaves no room for a scored token
  int64_t kept_shards = 0;   // found finished from an earlier start of the same run
  double seconds = 0;
};
Json to_json(const TokenizeSummary& summary);

// The result is a function of the inputs, the options but `workers`, and the tokenizer: no byte depends on
// the number of threads, the time, or on how often the run was stopped and started again.
//
// Everything is written in OUT/.tmp-tokenize: shards, and after each of them state.json, which says where in
// the input it ended. A start that finds the state of the same run goes on behind the last shard that still
// has its hash. At the end the shards move up into OUT, then the manifest, then the state goes. Readers
// refuse a directory with such a state. An OUT that holds anything else is refused; one that holds this very
// result is left as it is.
TokenizeSummary tokenize_files(const Tokenizer& tokenizer, const TokenizeOptions& options);

inline constexpr char kUnfinishedState[] = ".tmp-tokenize/state.json";

}  // namespace sinklora
