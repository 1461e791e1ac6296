// Tokenized samples on disk, read by index.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace sinklora {

inline constexpr int32_t kNotScored = -1;  // in `targets`

// One row of a dataset: up to `context` tokens, possibly several documents.
struct Sample {
  std::vector<int32_t> ids;              // inputs
  std::vector<int32_t> targets;          // targets[t] is the token after ids[t], or kNotScored
  std::vector<int64_t> document_starts;  // ascending, [0] == 0: where each packed document begins
};

struct DatasetOptions {
  int64_t context = 0;             // wanted row length in tokens; shards must hold rows of this length
  int64_t vocab_size = 0;          // ids at or above it are refused
  bool separate_documents = true;  // false: packed documents see each other, as in LongLoRA
  std::string tokenizer_sha256{};  // of the model's tokenizer, "" if unknown; a different one is refused
  bool force_tokenizer = false;
};

// All tokens of a data set behind one another.
struct AllTokens {
  std::vector<int32_t> ids;
  int64_t masked = 0;  // tokens that the shards mask, first tokens of separate documents not counted
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  // Reads one sample; no shard is ever held in memory. Throws Error(input) naming file and row. Thread-safe.
  virtual Sample read(int64_t index) const = 0;
  // As the sliding perplexity protocol wants them: a .bin stream as it is, or the real tokens of every row.
  virtual AllTokens read_all() const;
  // The most sequences that make_batch() makes of one sample.
  virtual int64_t most_documents() const = 0;
  virtual std::string describe() const = 0;  // one line: what it is, how many samples and tokens
  virtual std::string hash() const = 0;      // hex; equal for equal content
};

// A directory of HDF5 shards, one .h5 file, or a headerless uint16 stream (.bin).
std::unique_ptr<Dataset> open_dataset(const std::filesystem::path& path, const DatasetOptions& options);

}  // namespace sinklora
