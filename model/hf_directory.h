// A Hugging Face LLaMA directory: config.json and one or many safetensors files.
#pragma once

#include <memory>

#include "model/config.h"
#include "model/safetensors.h"

namespace sinklora {

// The two matrices that are one where a model's embeddings are tied.
inline constexpr const char* kEmbedding = "model.embed_tokens.weight";
inline constexpr const char* kHead = "lm_head.weight";

// Names and shapes of every tensor that a LLaMA of this config has, lm_head only when it is not tied.
std::vector<TensorInfo> expected_tensors(const LlamaConfig& config);

class ModelDirectory {
 public:
  // Opens every shard and compares all tensors with expected_tensors(): missing, extra and misshaped ones are
  // listed together (20 at most). Shard names with a path in them are refused before anything is opened.
  explicit ModelDirectory(const std::filesystem::path& directory);

  const LlamaConfig& config() const { return config_; }
  const std::filesystem::path& path() const { return directory_; }
  const TensorInfo& info(const std::string& name) const;
  // Elements [begin, begin + out.size()) of a tensor as float; bf16 and fp16 convert exactly.
  void read(const std::string& name, int64_t begin, std::span<float> out) const;
  int64_t parameters() const;
  // Where a SHA256SUMS lies beside the weights: they must be what it says. Reads all of them; throws Error(input).
  void verify_sums() const;

 private:
  struct Entry {
    size_t file;
    TensorInfo info;
  };
  const Entry& entry(const std::string& name) const;
  void expect_head_is_embedding() const;

  std::filesystem::path directory_;
  LlamaConfig config_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

// What tells a model from another one, without reading all of it: a hash over config.json and *.safetensors, of files
// beyond 64 MiB over 16 KiB in every 4 MiB and their sizes.
std::string weights_identity(const std::filesystem::path& model);

constexpr int64_t kDefaultShardBytes = 5'000'000'000;  // of a weights file, as in transformers

// Writes config.json, model.safetensors (or shards of at most `max_shard_bytes` and their index) and copies
// of the tokenizer's files of `copy_from` into `directory`, which must exist and is made durable by the
// caller (base/files.h, AtomicDirectory). `tensors` in any order.
void write_model_directory(const std::filesystem::path& directory, const LlamaConfig& config,
                           const std::vector<TensorSource>& tensors, const std::filesystem::path& copy_from,
                           int64_t max_shard_bytes = kDefaultShardBytes);

}  // namespace sinklora
