#include "data/shard_reader.h"

#include <array>

#include "base/error.h"
#include "data/shard_writer.h"

namespace sinklora {
namespace {

constexpr int64_t kMaxContext = int64_t{1} << 24;  // bounds the memory that a hostile shape can ask for

}  // namespace

ShardReader::ShardReader(const std::filesystem::path& path)
    : path_(path), file_(path), data_(file_.open("data", 3, 4)) {
  const std::string name = path.string();
  if (data_.shape()[1] != 3)
    fail_input("{}: /data has {} rows a sample; 3 are read (input ids, loss mask, labels)", name,
               data_.shape()[1]);
  if (rows() < 1 || context() < 1 || context() > kMaxContext)
    fail_input("{}: /data holds {} samples of {} tokens; at least one is wanted, of 1 .. {} tokens", name,
               rows(), context(), kMaxContext);
  const std::optional<int64_t> examples = file_.integer("n_examples");
  if (!examples) fail_input("{}: the attribute n_examples is missing; this is no shard of tokens", name);
  if (*examples != rows())
    fail_input("{}: n_examples says {}, but /data holds {} samples; the shard is damaged", name, *examples,
               rows());
  if (const auto length = file_.integer("max_seq_length"); length && *length != context())
    fail_input("{}: max_seq_length says {}, but rows hold {} tokens", name, *length, context());

  const std::optional<std::string> schema = file_.text("schema");
  if (!schema) return;
  if (*schema != kShardSchema)
    fail_input("{}: schema \"{}\"; this program reads \"{}\"", name, *schema, kShardSchema);
  ours_ = true;
  if (file_.integer("complete") != 1) fail_input("{}: was never finished; run tokenize again", name);
  doc_len_ = file_.open("doc_len", 1, 4);
  document_starts_ = file_.open("document_starts", 1, 4);
  document_offsets_ = file_.open("document_offsets", 1, 8);
  if (doc_len_->shape()[0] != rows() || document_offsets_->shape()[0] != rows() + 1)
    fail_input("{}: /doc_len or /document_offsets does not fit {} rows; the shard is damaged", name, rows());
}

void ShardReader::read_documents(int64_t row, int64_t tokens, Sample& sample) const {
  std::array<int64_t, 2> bounds{};
  document_offsets_->read(row, 2, bounds);
  const int64_t count = bounds[1] - bounds[0];
  if (bounds[0] < 0 || count < 1 || count > tokens || bounds[1] > document_starts_->shape()[0])
    fail_input("{}: row {}: /document_offsets are {} .. {}, out of order or range", path_.string(), row,
               bounds[0], bounds[1]);
  std::vector<int32_t> starts(static_cast<size_t>(count));
  document_starts_->read(bounds[0], count, starts);
  for (size_t i = 0; i < starts.size(); ++i)
    if (i == 0 ? starts[0] != 0 : (starts[i] <= starts[i - 1] || starts[i] >= tokens))
      fail_input("{}: row {}: document {} starts at {}, out of order or range", path_.string(), row, i,
                 starts[i]);
  sample.document_starts.assign(starts.begin(), starts.end());
}

int64_t ShardReader::most_documents() const {
  if (!ours_) return 1;
  std::vector<int64_t> offsets(static_cast<size_t>(rows()) + 1);
  document_offsets_->read(0, rows() + 1, offsets);
  const int64_t all = document_starts_->shape()[0];
  int64_t most = 1;
  for (size_t i = 1; i < offsets.size(); ++i)
    if (offsets[i - 1] >= 0 && offsets[i] >= offsets[i - 1] && offsets[i] <= all)  // read() refuses others
      most = std::max(most, offsets[i] - offsets[i - 1]);
  return std::min(most, context());
}

Sample ShardReader::read(int64_t row, int64_t vocab_size) const {
  if (row < 0 || row >= rows()) fail_internal("{}: row {} of {} asked for", path_.string(), row, rows());
  const auto length = static_cast<size_t>(context());
  std::vector<int32_t> cells(3 * length);
  data_.read(row, 1, cells);
  const std::span<const int32_t> all(cells);
  const auto ids = all.first(length), mask = all.subspan(length, length), labels = all.last(length);

  size_t last_scored = 0;
  for (size_t t = 0; t < length; ++t) {
    if (mask[t] != 0 && mask[t] != 1)
      fail_input("{}: row {}, position {}: loss mask {}; 0 or 1 is wanted", path_.string(), row, t, mask[t]);
    if (mask[t] == 1) last_scored = t;
  }
  Sample sample;
  int64_t tokens = static_cast<int64_t>(last_scored) + 1;
  if (ours_) {
    int32_t stated = 0;
    doc_len_->read(row, 1, std::span(&stated, 1));
    if (stated < tokens || stated > context())
      fail_input("{}: row {}: /doc_len is {}, but {} .. {} is wanted", path_.string(), row, stated, tokens,
                 context());
    tokens = stated;
    read_documents(row, tokens, sample);
  } else {
    sample.document_starts = {0};
  }

  const auto check = [&](int32_t id, int64_t t) {
    if (id < 0 || (vocab_size > 0 && id >= vocab_size))
      fail_input(
          "{}: row {}, position {}: token {} is outside the model's vocabulary of {}; tokenize with the "
          "model's own tokenizer",
          path_.string(), row, t, id, vocab_size);
  };
  sample.ids.assign(ids.begin(), ids.begin() + tokens);
  sample.targets.assign(static_cast<size_t>(tokens), kNotScored);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto i = static_cast<size_t>(t);
    check(ids[i], t);
    if (mask[i] == 0) continue;
    check(labels[i], t);
    sample.targets[i] = labels[i];
  }
  return sample;
}

}  // namespace sinklora
