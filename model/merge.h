// An adapter put into its base: W' = round(W + scale * B A), tensor by tensor, never the whole model in
// memory.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "model/hf_directory.h"
#include "model/peft_adapter.h"

namespace sinklora {

DType parse_weights_dtype(const std::string& word);  // "bf16", "fp16" or "fp32"

struct MergeOptions {
  std::optional<DType> dtype;  // of all weights; empty: each tensor keeps the base's
  int64_t max_shard_bytes = kDefaultShardBytes;
  std::optional<RopeScaling> rope;  // of the adapter's training run; empty: the base's
  int64_t context = 0;              // of that run; 0: not known
};

struct MergeReport {
  int64_t tensors = 0;          // written
  int64_t changed_tensors = 0;  // of which at least one element differs from the base's
  int64_t changed_elements = 0;
  int64_t parameters = 0;
  bool tied = false;  // does the result still use its embedding as its head?
};

// Writes a Hugging Face directory `out`, which must not exist; it appears whole or not at all. Sums are
// formed in double and rounded once, to nearest even. An empty adapter makes this a copy, which is how a
// model changes its dtype or the size of its shards. Tied embeddings stay tied as long as embedding and head
// hold the same numbers afterwards; otherwise lm_head.weight is written and tie_word_embeddings set to false.
// A replaced embedding with more rows than the base (`keep` of read_adapter) makes the vocabulary larger; the
// other of embedding and head then gets the mean of its rows as new ones.
MergeReport merge_adapter(const ModelDirectory& base, const Adapter& adapter,
                          const std::filesystem::path& out, const MergeOptions& options = {});

// Copies the files of an adapter, and nothing else of a checkpoint, into a new directory after a look at
// them.
AdapterLayout copy_adapter(const std::filesystem::path& from, const std::filesystem::path& out);

}  // namespace sinklora
