#include "data/dataset.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "base/hash.h"
#include "data/manifest.h"
#include "data/shard_reader.h"
#include "data/token_stream.h"
#include "data/tokenize.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxOpenShards = 64;

struct Shard {
  fs::path path;
  std::string hash;
  int64_t first_row = 0, rows = 0;
};

// Opening reads every shard once, to compare it with its manifest before HDF5 sees it, and for hash(): what
// the disk takes for that. Nothing is remembered of it beyond the process.
class ShardedDataset : public Dataset {
 public:
  ShardedDataset(const fs::path& path, const DatasetOptions& options) : options_(options) {
    list(path);
    int64_t first = 0;
    for (Shard& shard : shards_) {
      const ShardReader reader(shard.path);
      check(reader, shard.path);
      shard.first_row = first;
      shard.rows = reader.rows();
      first += shard.rows;
      if (options.separate_documents) most_documents_ = std::max(most_documents_, reader.most_documents());
    }
    size_ = first;
    readers_.resize(shards_.size());
  }

  int64_t size() const override { return size_; }

  Sample read(int64_t index) const override {
    if (index < 0 || index >= size_) fail_internal("sample {} of {} asked for", index, size_);
    const std::lock_guard lock(mutex_);
    const auto after = std::upper_bound(shards_.begin(), shards_.end(), index,
                                        [](int64_t i, const Shard& shard) { return i < shard.first_row; });
    const auto number = static_cast<size_t>(after - shards_.begin()) - 1;
    Sample sample = reader(number).read(index - shards_[number].first_row, options_.vocab_size);
    if (!options_.separate_documents) sample.document_starts = {0};
    return sample;
  }

  int64_t most_documents() const override { return most_documents_; }

  std::string describe() const override {
    return fmt::format("{} HDF5 shard{}, {} samples of up to {} tokens{}", shards_.size(),
                       shards_.size() == 1 ? "" : "s", size_, context_,
                       tokens_ ? fmt::format(", {} tokens", *tokens_) : "");
  }

  std::string hash() const override {
    std::string hashes;
    for (const Shard& shard : shards_) hashes += shard.hash;
    return fmt::format("{:016x}", xxh3_64(hashes));
  }

 private:
  void list(const fs::path& path) {
    const bool single = !fs::is_directory(path);
    const fs::path folder = single ? path.parent_path() : path;
    if (!single && fs::exists(path / kUnfinishedState))
      fail_input("{}: tokenize was interrupted; run the same command again to finish it", path.string());
    std::vector<std::string> names;
    if (single)
      names.push_back(path.filename().string());
    else
      for (const auto& entry : fs::directory_iterator(path))
        if (entry.path().extension() == ".h5") names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    if (names.empty()) fail_input("{}: holds no .h5 file; make them with `sinklora tokenize`", path.string());

    const std::optional<std::vector<ShardEntry>> manifest = read_manifest(folder);
    if (manifest && !single && manifest->size() != names.size())
      fail_input("{}: holds {} .h5 files, its {} lists {}", path.string(), names.size(), kManifestName,
                 manifest->size());
    if (manifest) tokens_ = 0;
    for (const std::string& name : names) {
      const fs::path file = folder / name;
      Shard shard{file, {}, 0, 0};
      if (manifest) {
        const auto entry = std::find_if(manifest->begin(), manifest->end(),
                                        [&](const ShardEntry& candidate) { return candidate.file == name; });
        if (entry == manifest->end()) fail_input("{}: is not in {}", file.string(), kManifestName);
        if (const std::string wrong = shard_differs(file, *entry); !wrong.empty())
          fail_input("{}: {}; tokenize again, or copy it again", file.string(), wrong);
        shard.hash = entry->xxh3_128;
        *tokens_ += entry->tokens;
      } else {
        shard.hash = xxh3_128_of_file(file);
      }
      shards_.push_back(std::move(shard));
    }
  }

  void check(const ShardReader& reader, const fs::path& path) {
    if (context_ == 0) context_ = reader.context();
    const int64_t wanted = options_.context > 0 ? options_.context : context_;
    if (reader.context() != wanted)
      fail_input("{}: was made for context {}, but {} is asked for; tokenize again with --context {}",
                 path.string(), reader.context(), wanted, wanted);
    const std::optional<int64_t> max_id = reader.file().integer("max_token_id");
    if (max_id && options_.vocab_size > 0 && *max_id >= options_.vocab_size)
      fail_input(
          "{}: holds token {}, but the model's vocabulary has {}; tokenize with the model's own tokenizer",
          path.string(), *max_id, options_.vocab_size);
    const std::string made_with = reader.is_ours() ? reader.file().text("tokenizer_sha256").value_or("") : "";
    if (!made_with.empty() && !options_.tokenizer_sha256.empty() && made_with != options_.tokenizer_sha256 &&
        !options_.force_tokenizer)
      fail_input(
          "{}: was made with another tokenizer (sha256 {:.12}..., the model's is {:.12}...); tokenize again, "
          "or --force-tokenizer",
          path.string(), made_with, options_.tokenizer_sha256);
  }

  // Called under the lock. Few shards stay open, so that thousands of them do not use up the file
  // descriptors.
  const ShardReader& reader(size_t number) const {
    if (!readers_[number]) {
      if (open_.size() == kMaxOpenShards) {
        readers_[open_.front()].reset();
        open_.erase(open_.begin());
      }
      readers_[number] = std::make_unique<ShardReader>(shards_[number].path);
      open_.push_back(number);
      if (readers_[number]->rows() != shards_[number].rows || readers_[number]->context() != context_)
        fail_input("{}: changed while it was in use", shards_[number].path.string());
    }
    return *readers_[number];
  }

  DatasetOptions options_;
  std::vector<Shard> shards_;
  int64_t size_ = 0, context_ = 0, most_documents_ = 1;
  std::optional<int64_t> tokens_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<ShardReader>> readers_;
  mutable std::vector<size_t> open_;  // oldest first
};

class StreamDataset : public Dataset {
 public:
  StreamDataset(const fs::path& path, const DatasetOptions& options)
      : stream_(path), options_(options), hash_(xxh3_128_of_file(path)) {
    if (options.context < 1) fail_usage("{}: a token stream needs a context length", path.string());
    if (stream_.token_bytes() == 2 && options.vocab_size > 65536)
      fail_input("{}: uint16 cannot hold the ids of a vocabulary of {}; make shards with `sinklora tokenize`",
                 path.string(), options.vocab_size);
    if (stream_.size() < options.context)
      fail_input("{}: holds {} tokens, fewer than one sample of {}", path.string(), stream_.size(),
                 options.context);
  }

  int64_t size() const override { return stream_.size() / options_.context; }

  int64_t most_documents() const override { return 1; }

  Sample read(int64_t index) const override {
    if (index < 0 || index >= size()) fail_internal("sample {} of {} asked for", index, size());
    Sample sample;
    sample.ids = stream_.read(index * options_.context, options_.context, options_.vocab_size);
    sample.targets.assign(sample.ids.begin() + 1, sample.ids.end());
    sample.targets.push_back(kNotScored);
    sample.document_starts = {0};
    return sample;
  }

  AllTokens read_all() const override { return {stream_.read(0, stream_.size(), options_.vocab_size)}; }

  std::string describe() const override {
    const int64_t rest = stream_.size() % options_.context;
    return fmt::format("{}, {} samples of {}{}", stream_.describe(), size(), options_.context,
                       rest > 0 ? fmt::format(", the last {} tokens left out", rest) : "");
  }

  std::string hash() const override { return hash_; }

 private:
  TokenStream stream_;
  DatasetOptions options_;
  std::string hash_;
};

}  // namespace

AllTokens Dataset::read_all() const {
  AllTokens all;
  for (int64_t i = 0; i < size(); ++i) {
    const Sample row = read(i);
    all.ids.insert(all.ids.end(), row.ids.begin(), row.ids.end());
    // What follows the last token of a document is another one, or nothing: no mask is needed there.
    for (size_t t = 0; t + 1 < row.ids.size(); ++t)
      all.masked += row.targets[t] == kNotScored &&
                    !std::binary_search(row.document_starts.begin(), row.document_starts.end(),
                                        static_cast<int64_t>(t) + 1);
  }
  return all;
}

std::unique_ptr<Dataset> open_dataset(const fs::path& path, const DatasetOptions& options) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) fail_input("{}: does not exist", path.string());
  if (fs::is_directory(status) || path.extension() == ".h5" || path.extension() == ".hdf5")
    return std::make_unique<ShardedDataset>(path, options);
  if (path.extension() == ".bin") return std::make_unique<StreamDataset>(path, options);
  fail_input("{}: neither a directory of shards, nor .h5, nor .bin", path.string());
}

}  // namespace sinklora
