#include "data/inspect_dataset.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "data/dataset.h"
#include "data/hdf5.h"
#include "data/token_stream.h"
#include "data/tokenize.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

void line(std::FILE* out, const char* name, const std::string& value) {
  fmt::print(out, "  {:<16}  {}\n", name, value);
}

std::string share(int64_t part, int64_t whole) {
  return fmt::format("{:.2f} %",
                     whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0);
}

// A token as a quoted string: nothing in it can steer the terminal.
std::string shown(const Tokenizer* tokenizer, int32_t id) {
  if (id == kNotScored) return "-";
  if (!tokenizer) return std::to_string(id);
  const std::string piece = id < tokenizer->vocab_size ? tokenizer->piece(id) : "?";
  return fmt::format("{} {}", id, dump_json(piece));
}

void print_sample(const Sample& sample, int64_t number, int64_t positions, const Tokenizer* tokenizer,
                  std::FILE* out) {
  const auto size = static_cast<int64_t>(sample.ids.size());
  fmt::print(out, "\nsample {}: {} tokens in {} document{}\n{:>9}  {:<28}  {}\n", number, size,
             sample.document_starts.size(), sample.document_starts.size() == 1 ? "" : "s", "position",
             "token", "label (- is not scored)");
  for (int64_t t = 0; t < std::min(size, positions); ++t) {
    if (t > 0 && std::binary_search(sample.document_starts.begin(), sample.document_starts.end(), t))
      fmt::print(out, "{:>9}  -- next document --\n", "");
    fmt::print(out, "{:>9}  {:<28}  {}\n", t, shown(tokenizer, sample.ids[static_cast<size_t>(t)]),
               shown(tokenizer, sample.targets[static_cast<size_t>(t)]));
  }
  if (size > positions)
    fmt::print(out, "{:>9}  {} more (--positions N shows more)\n", "...", size - positions);
}

// The attributes of one shard; those of a directory are those of its first.
void print_attributes(const fs::path& path, std::FILE* out) {
  fs::path file = path;
  if (fs::is_directory(path)) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(path))
      if (entry.path().extension() == ".h5") files.push_back(entry.path());
    file = *std::min_element(files.begin(), files.end());
  }
  const Hdf5Reader reader(file);
  if (!reader.text("schema"))
    return line(out, "schema", "none: of another program, as Cerebras' Model Zoo reads it");
  for (const char* name : {"schema", "created_by", "template", "tokenizer_sha256", "source_sha256"})
    line(out, name, reader.text(name).value_or("missing"));
  for (const char* name : {"vocab_size", "max_token_id", "pad_id", "bos_id", "eos_id"}) {
    const std::optional<int64_t> value = reader.integer(name);
    line(out, name, value ? std::to_string(*value) : "missing");
  }
}

bool is_stream(const fs::path& path) { return path.extension() == ".bin" && !fs::is_directory(path); }

}  // namespace

bool is_dataset(const fs::path& path) {
  if (!fs::is_directory(path))
    return path.extension() == ".h5" || path.extension() == ".hdf5" || is_stream(path);
  if (fs::exists(path / kUnfinishedState)) return true;
  for (const auto& entry : fs::directory_iterator(path))
    if (entry.path().extension() == ".h5") return true;
  return false;
}

void inspect_dataset(const fs::path& path, const InspectOptions& options, const Tokenizer* tokenizer,
                     std::FILE* out) {
  if (is_stream(path) && options.context == 0) {
    fmt::print(out, "{}: {}\n", path.string(), TokenStream(path).describe());
    if (options.samples > 0) fail_usage("--samples of a token stream needs --context N");
    return;
  }
  const std::unique_ptr<Dataset> dataset = open_dataset(path, {.context = options.context});
  int64_t tokens = 0, scored = 0, documents = 0, shortest = INT64_MAX, longest = 0;
  {
    Progress progress("inspect", static_cast<double>(dataset->size()), "samples");
    for (int64_t i = 0; i < dataset->size(); ++i) {
      const Sample sample = dataset->read(i);
      const auto size = static_cast<int64_t>(sample.ids.size());
      tokens += size;
      scored += size - std::count(sample.targets.begin(), sample.targets.end(), kNotScored);
      documents += static_cast<int64_t>(sample.document_starts.size());
      shortest = std::min(shortest, size);
      longest = std::max(longest, size);
      progress.update(static_cast<double>(i + 1));
    }
  }
  fmt::print(out, "{}: {}\n", path.string(), dataset->describe());
  line(out, "samples", std::to_string(dataset->size()));
  line(out, "tokens", fmt::format("{} ({} .. {} a sample)", tokens, shortest, longest));
  line(out, "scored", fmt::format("{} ({} of the tokens)", scored, share(scored, tokens)));
  line(out, "documents", fmt::format("{} (pieces of cut ones counted one by one)", documents));
  line(out, "content hash", dataset->hash());
  if (!is_stream(path)) print_attributes(path, out);
  for (int64_t i = 0; i < std::min(options.samples, dataset->size()); ++i)
    print_sample(dataset->read(i), i, options.positions, tokenizer, out);
}

std::string verify_dataset(const std::filesystem::path& path) {
  if (is_stream(path)) {  // any 16 bits are an id
    const TokenStream stream(path);
    stream.expect_whole();
    return stream.describe();
  }
  const auto dataset = open_dataset(path, {});
  for (int64_t i = 0; i < dataset->size(); ++i) dataset->read(i);
  return dataset->describe();
}

}  // namespace sinklora
