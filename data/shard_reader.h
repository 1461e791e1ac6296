// Reads one shard, ours or one of Cerebras' Model Zoo in its 3-row form, as a file from elsewhere: every
// shape, type and number is checked before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "data/dataset.h"
#include "data/hdf5.h"

namespace sinklora {

class ShardReader {
 public:
  explicit ShardReader(const std::filesystem::path& path);

  int64_t rows() const { return data_.shape()[0]; }
  int64_t context() const { return data_.shape()[2]; }
  // False for a file without our schema. Such a row has no stated length: it is cut after its last scored
  // position. What follows is padding, or tokens that under causal attention reach no scored position. A row
  // is one document.
  bool is_ours() const { return ours_; }
  const Hdf5Reader& file() const { return file_; }

  // That one row holds, as its table says.
  int64_t most_documents() const;

  // One row as a sample; ids outside [0, vocab_size) are refused (0: unknown, any id goes).
  Sample read(int64_t row, int64_t vocab_size) const;

 private:
  void read_documents(int64_t row, int64_t tokens, Sample& sample) const;

  std::filesystem::path path_;
  Hdf5Reader file_;
  Hdf5Dataset data_;
  bool ours_ = false;
  std::optional<Hdf5Dataset> doc_len_, document_starts_, document_offsets_;  // of ours
};

}  // namespace sinklora
