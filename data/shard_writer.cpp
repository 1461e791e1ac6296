#include "data/shard_writer.h"

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"

namespace sinklora {
namespace fs = std::filesystem;

std::vector<uint8_t> loss_mask(const TokenRow& row) {
  std::vector<uint8_t> mask(row.ids.size(), 0);
  for (size_t t = 0; t + 1 < mask.size(); ++t) mask[t] = row.scored[t + 1];
  for (const int32_t start : row.document_starts)
    if (start > 0) mask[static_cast<size_t>(start) - 1] = 0;
  return mask;
}

ShardWriter::ShardWriter(fs::path path, const ShardInfo& info)
    : path_(std::move(path)),
      info_(info),
      file_(path_),
      data_(file_.create_growing("data", {3, info.context})),
      buffer_(static_cast<size_t>(3 * info.context)) {}

void ShardWriter::append(const TokenRow& row) {
  const auto context = static_cast<size_t>(info_.context);
  const size_t n = row.ids.size();
  if (n == 0 || n > context || row.scored.size() != n || row.document_starts.empty() ||
      row.document_starts[0] != 0)
    fail_internal("{}: a malformed row of {} tokens", path_.string(), n);

  const std::vector<uint8_t> mask = loss_mask(row);
  const auto ids = buffer_.begin(), masks = ids + info_.context, labels = masks + info_.context;
  std::fill(ids, masks, info_.pad_id);
  std::fill(masks, labels, 0);
  std::fill(labels, buffer_.end(), info_.pad_id);
  std::copy(row.ids.begin(), row.ids.end(), ids);
  std::copy(mask.begin(), mask.end(), masks);
  std::copy(row.ids.begin() + 1, row.ids.end(), labels);
  data_->append(buffer_);

  doc_len_.push_back(static_cast<int32_t>(n));
  doc_id_.push_back(row.document_id);
  document_starts_.insert(document_starts_.end(), row.document_starts.begin(), row.document_starts.end());
  document_offsets_.push_back(static_cast<int64_t>(document_starts_.size()));
  tokens_ += static_cast<int64_t>(n);
  scored_tokens_ += std::count(mask.begin(), mask.end(), 1);
  max_token_id_ = std::max(max_token_id_, *std::max_element(row.ids.begin(), row.ids.end()));
}

ShardEntry ShardWriter::finish() {
  file_.write("doc_len", doc_len_);
  file_.write("doc_id", doc_id_);
  file_.write("document_starts", document_starts_);
  file_.write("document_offsets", document_offsets_);
  file_.attribute("schema", kShardSchema);
  file_.attribute("n_examples", rows());
  file_.attribute("max_seq_length", info_.context);
  file_.attribute("vocab_size", info_.vocab_size);
  file_.attribute("max_token_id", int64_t{max_token_id_});
  file_.attribute("pad_id", int64_t{info_.pad_id});
  file_.attribute("bos_id", int64_t{info_.bos_id});
  file_.attribute("eos_id", int64_t{info_.eos_id});
  file_.attribute("tokenizer_sha256", info_.tokenizer_sha256);
  file_.attribute("source_sha256", info_.source_sha256);
  file_.attribute("template", info_.template_name);
  file_.attribute("created_by", "sinklora " SINKLORA_VERSION);
  file_.attribute("complete", int64_t{1});
  data_.reset();
  const std::span<const std::byte> bytes = file_.finish();
  AtomicFile file(path_);
  file.write(bytes);
  file.commit();
  return {path_.filename().string(), static_cast<int64_t>(bytes.size()), rows(), tokens_, scored_tokens_,
          xxh3_128_of_file(path_)};
}

}  // namespace sinklora
