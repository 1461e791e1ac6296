// One HDF5 shard of tokenized rows, laid out as Cerebras' Model Zoo reads it, plus what packing needs:
//   /data              i4 [N, 3, context]: input ids, LOSS mask, labels (already shifted); a chunk a row
//   /doc_len           i4 [N]: real tokens of the row; the rest is padding (pad_id, mask 0)
//   /doc_id            i8 [N]: number of the source record that the row begins with, from 0
//   /document_starts   i4 [M], /document_offsets i8 [N + 1]: row r's documents begin at its positions
//                      document_starts[document_offsets[r] .. document_offsets[r + 1]); the first is always 0
// Within the real tokens labels[t] = ids[t + 1]; mask[t] is 1 when that label is scored. Never scored: the
// last token of a document (its label begins the next one) and the last position of a row (its label lies in
// no row). Attributes of the root: kShardSchema and the fields of ShardInfo, n_examples, max_token_id;
// complete = 1 comes last.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/hdf5.h"

namespace sinklora {

inline constexpr char kShardSchema[] = "cerebras-sft-3xL/1";

struct ShardInfo {
  int64_t context = 0;
  int64_t vocab_size = 0;
  int32_t pad_id = 0, bos_id = -1, eos_id = -1;
  std::string tokenizer_sha256, source_sha256, template_name;
};

// A row before it is padded.
struct TokenRow {
  std::vector<int32_t> ids;     // [n], n <= context
  std::vector<uint8_t> scored;  // [n]: 1 when this token is one that the model shall learn to predict
  std::vector<int32_t> document_starts;  // ascending, [0] == 0
  int64_t document_id = 0;
};

// 1 at each position whose next token is scored: the loss mask of the row's real tokens.
std::vector<uint8_t> loss_mask(const TokenRow& row);

// What the manifest says of a finished shard.
struct ShardEntry {
  std::string file;  // its bare name
  int64_t bytes = 0, n_examples = 0, tokens = 0, scored_tokens = 0;
  std::string xxh3_128;
  bool operator==(const ShardEntry&) const = default;
};

// Builds the shard in memory, compressed; finish() writes it, durably, and under a temporary name until it is
// whole.
class ShardWriter {
 public:
  ShardWriter(std::filesystem::path path, const ShardInfo& info);

  void append(const TokenRow& row);
  int64_t rows() const { return static_cast<int64_t>(doc_len_.size()); }
  ShardEntry finish();

 private:
  std::filesystem::path path_;
  ShardInfo info_;
  Hdf5Writer file_;
  std::optional<Hdf5Dataset> data_;
  std::vector<int32_t> buffer_;  // [3, context]
  std::vector<int32_t> doc_len_, document_starts_;
  std::vector<int64_t> doc_id_, document_offsets_{0};
  int64_t tokens_ = 0, scored_tokens_ = 0;
  int32_t max_token_id_ = 0;
};

}  // namespace sinklora
