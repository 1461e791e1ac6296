#include "model/hf_directory.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/json_fields.h"
#include "model/checksums.h"
#include "model/defects.h"
#include "model/expected_directory.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = int64_t{1} << 20;  // ten times that of a LLaMA of 405 billion parameters
constexpr const char* kCopiedFiles[] = {
    "tokenizer.model",   "tokenizer.json",         "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json", "chat_template.jinja"};

// Old uploads store this table beside the weights; it follows from the config.
bool ignored(const std::string& name) { return name.ends_with(".rotary_emb.inv_freq"); }

// A shard's name comes from the index, that is, from a stranger: it must name a file of this directory and
// nothing else.
void check_shard_name(const std::string& name, const std::string& source) {
  const bool bad = name.empty() || name.size() > 255 || name.find("..") != std::string::npos || name == "." ||
                   name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos;
  if (bad)
    fail_input(
        "{}: weight_map names the file {}; wanted a bare file name without /, \\, .. or NUL, of at most 255 "
        "bytes",
        source, shown(Json(name)));
}

// Follows the links of a file before it is opened. They may stay inside the directory, or lead to where the
// download cache of Hugging Face keeps the content of its snapshots: snapshots/REVISION/FILE ->
// ../../blobs/HASH.
fs::path contained(const fs::path& directory, const std::string& name) {
  const fs::path path = directory / name;
  std::error_code error;
  if (!fs::is_symlink(fs::symlink_status(path, error))) return path;
  const fs::path target = fs::canonical(path, error);
  if (error) fail_input("{}: a link that leads nowhere: {}", path.string(), error.message());
  const fs::path home = fs::canonical(directory, error);
  const fs::path cache = home.parent_path().parent_path() / "blobs";
  if (error || (target.parent_path() != home && target.parent_path() != cache))
    fail_input(
        "{}: a link that leaves the directory, to {}; name the directory that holds the file, or copy it "
        "here",
        path.string(), target.string());
  return path;
}

// What the index promises: tensor -> file.
struct Index {
  std::map<std::string, std::string> file_of;
  std::optional<int64_t> total_size;
};
Index read_index(const fs::path& path) {
  const std::string source = path.string();
  const Json json = read_json(path, kMaxIndexBytes);
  const JsonFields fields(json, source);
  if (!fields.given("weight_map") || !json["weight_map"].is_object() || json["weight_map"].empty())
    fail_input("{}: weight_map is missing or empty; wanted an object of tensor names and file names", source);
  Index index;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!file.is_string())
      fail_input("{}: weight_map: {} is {}, wanted a file name", source, shown(Json(tensor)), shown(file));
    check_shard_name(file.get<std::string>(), source);
    index.file_of[tensor] = file.get<std::string>();
  }
  if (fields.given("metadata")) {
    const JsonFields metadata(json["metadata"], source + ": metadata");
    // Some writers store it as a float; it is advice, not needed.
    if (metadata.given("total_size") && json["metadata"]["total_size"].is_number())
      index.total_size =
          static_cast<int64_t>(std::clamp(json["metadata"]["total_size"].get<double>(), -1.0, 1e18));
  }
  return index;
}

void compare_with_expected(const LlamaConfig& config, const std::map<std::string, TensorInfo>& found,
                           Defects& defects) {
  std::set<std::string> wanted;
  for (const TensorInfo& expected : expected_tensors(config)) {
    wanted.insert(expected.name);
    const auto at = found.find(expected.name);
    if (at == found.end()) {
      const bool head = expected.name == kHead;
      defects.add("{} is missing{}", expected.name,
                  head ? " (and config.json does not set tie_word_embeddings)" : "");
      continue;
    }
    const TensorInfo& info = at->second;
    if (info.shape != expected.shape)
      defects.add("{} has shape [{}], wanted [{}]", info.name, fmt::join(info.shape, ", "),
                  fmt::join(expected.shape, ", "));
    if (!info.foreign_dtype.empty() || info.dtype == DType::i64 || info.dtype == DType::i32)
      defects.add("{} has dtype {}, wanted bf16, f16 or f32", info.name,
                  info.foreign_dtype.empty() ? name_of(info.dtype) : info.foreign_dtype);
  }
  for (const auto& [name, info] : found)
    if (!wanted.contains(name)) defects.add("{} is no tensor of this model", shown(Json(name)));
}

}  // namespace

std::vector<TensorInfo> expected_tensors(const LlamaConfig& config) {
  std::vector<TensorInfo> tensors;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    TensorInfo info;
    info.name = std::move(name);
    info.dtype = config.dtype;
    info.shape = std::move(shape);
    info.bytes = info.elements() * size_of(info.dtype);
    tensors.push_back(std::move(info));
  };
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  add(kEmbedding, {config.vocab_size, hidden});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string block = fmt::format("model.layers.{}.", layer);
    add(block + "input_layernorm.weight", {hidden});
    add(block + "self_attn.q_proj.weight", {config.query_width(), hidden});
    add(block + "self_attn.k_proj.weight", {config.kv_width(), hidden});
    add(block + "self_attn.v_proj.weight", {config.kv_width(), hidden});
    add(block + "self_attn.o_proj.weight", {hidden, config.query_width()});
    add(block + "post_attention_layernorm.weight", {hidden});
    add(block + "mlp.gate_proj.weight", {inner, hidden});
    add(block + "mlp.up_proj.weight", {inner, hidden});
    add(block + "mlp.down_proj.weight", {hidden, inner});
  }
  add("model.norm.weight", {hidden});
  if (!config.tied_embeddings) add(kHead, {config.vocab_size, hidden});
  return tensors;
}

ModelDirectory::ModelDirectory(const fs::path& directory)
    : directory_(directory), config_(read_config(directory)) {
  std::error_code error;
  Index index;
  std::vector<std::string> shards;
  const bool sharded = !fs::exists(fs::symlink_status(directory / kSingleFile, error));
  if (!sharded) {  // transformers prefers the single file too
    shards.push_back(kSingleFile);
  } else {
    if (!fs::exists(directory / kIndexFile, error)) fail_without_weights(directory);
    index = read_index(contained(directory, kIndexFile));
    std::set<std::string> names;
    for (const auto& [tensor, file] : index.file_of) names.insert(file);
    shards.assign(names.begin(), names.end());
  }

  Defects defects;
  std::map<std::string, TensorInfo> found;
  int64_t total_size = 0;
  for (const std::string& shard : shards) {
    files_.push_back(std::make_unique<SafetensorsFile>(contained(directory, shard)));
    expect_plain_names(*files_.back());
    for (const TensorInfo& info : files_.back()->tensors()) {
      total_size += info.bytes;
      const auto listed = index.file_of.find(info.name);
      if (sharded && listed == index.file_of.end())
        defects.add("{} is in {} but not in the index", shown(Json(info.name)), shard);
      else if (sharded && listed->second != shard)
        defects.add("{} is in {}, but the index says {}", shown(Json(info.name)), shard, listed->second);
      if (ignored(info.name)) continue;
      if (!found.emplace(info.name, info).second) defects.add("{} is in two files", shown(Json(info.name)));
      tensors_[info.name] = {files_.size() - 1, info};
    }
  }
  for (const auto& [tensor, file] : index.file_of)
    if (!tensors_.contains(tensor) && !ignored(tensor))
      defects.add("the index lists {} in {}, which lacks it", shown(Json(tensor)), file);
  if (config_.tied_embeddings && found.erase(kHead) != 0) {
    expect_head_is_embedding();
    tensors_.erase(kHead);
    fmt::print(stderr, "{}: note: {} is not used because config.json sets tie_word_embeddings\n",
               directory.string(), kHead);
  }
  compare_with_expected(config_, found, defects);
  defects.fail_if_any(fmt::format("{}: {} {} of the tensors", directory.string(), defects.count(),
                                  defects.count() == 1 ? "defect" : "defects"));
  if (index.total_size && *index.total_size != total_size)
    fmt::print(stderr, "{}: warning: the index gives total_size {}, the shards hold {} bytes\n",
               directory.string(), *index.total_size, total_size);
  const JsonFields fields(config_.raw, directory.string());
  if (!fields.given("dtype") && !fields.given("torch_dtype")) config_.dtype = info(kEmbedding).dtype;
}

// transformers 5 uses a stored head where it differs, and earlier ones never do.
void ModelDirectory::expect_head_is_embedding() const {
  const auto embedding = tensors_.find(kEmbedding);
  if (embedding == tensors_.end()) return;
  const Entry &a = embedding->second, &b = entry(kHead);
  if (!files_[a.file]->equal(a.info, *files_[b.file], b.info))
    fail_input(
        "{}: {} differs from {}, although config.json sets tie_word_embeddings: set that to false if the "
        "head is meant, or remove {}",
        directory_.string(), kHead, kEmbedding, kHead);
}

const ModelDirectory::Entry& ModelDirectory::entry(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail_internal("{}: no tensor {}", directory_.string(), name);
  return found->second;
}

void ModelDirectory::verify_sums() const {
  std::vector<std::string> names{"config.json"};
  for (const auto& file : files_) names.push_back(file->path().filename().string());
  sinklora::verify_sums(directory_, names);
}

const TensorInfo& ModelDirectory::info(const std::string& name) const { return entry(name).info; }

void ModelDirectory::read(const std::string& name, int64_t begin, std::span<float> out) const {
  const Entry& found = entry(name);
  files_[found.file]->read(found.info, begin, out);
}

int64_t ModelDirectory::parameters() const {
  int64_t count = 0;
  for (const auto& [name, found] : tensors_) count += found.info.elements();
  return count;
}

std::string weights_identity(const fs::path& model) {
  constexpr int64_t kWhole = 64 << 20, kPiece = 16 << 10, kEvery = 4 << 20;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(model))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::string sampled = read_text(model / "config.json", 1 << 20);
  for (const fs::path& file : files) {
    std::ifstream in(file, std::ios::binary);
    const auto size = static_cast<int64_t>(fs::file_size(file));
    sampled += fmt::format("\n{} {}\n", file.filename().string(), size);
    const int64_t piece = size <= kWhole ? size : kPiece;
    for (int64_t at = 0; at < size && in; at += std::max(piece, kEvery)) {
      const auto begin = static_cast<int64_t>(sampled.size()), count = std::min(piece, size - at);
      sampled.resize(static_cast<size_t>(begin + count));
      in.seekg(at);
      in.read(sampled.data() + begin, count);
    }
    if (!in) fail_input("{}: cannot be read", file.string());
  }
  return fmt::format("{:016x}", xxh3_64(sampled));
}

void write_model_directory(const fs::path& directory, const LlamaConfig& config,
                           const std::vector<TensorSource>& tensors, const fs::path& copy_from,
                           int64_t max_shard_bytes) {
  std::map<std::string, const TensorSource*> by_name;
  for (const TensorSource& tensor : tensors) by_name[tensor.name] = &tensor;
  std::vector<std::vector<TensorSource>> shards(1);
  std::vector<int64_t> shard_bytes(1);
  for (const TensorInfo& expected : expected_tensors(config)) {
    const auto found = by_name.find(expected.name);
    if (found == by_name.end() || found->second->shape != expected.shape)
      fail_internal("{}: the model to be written lacks {} [{}]", directory.string(), expected.name,
                    fmt::join(expected.shape, ", "));
    const int64_t bytes = expected.elements() * size_of(found->second->dtype);
    if (!shards.back().empty() && bytes > max_shard_bytes - shard_bytes.back()) {
      shards.emplace_back();
      shard_bytes.push_back(0);
    }
    shards.back().push_back(*found->second);
    shard_bytes.back() += bytes;
    by_name.erase(found);
  }
  if (!by_name.empty())
    fail_internal("{}: {} is no tensor of this model", directory.string(), by_name.begin()->first);

  int64_t total = 0;
  for (const int64_t bytes : shard_bytes) total += bytes;
  if (const auto room = free_bytes(directory); room && *room < total)
    fail_input("{}: the model needs {} bytes, the disk has {}; free some or choose another --out",
               directory.string(), total, *room);
  write_json(directory / "config.json", config_json(config));
  Json weight_map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1
                                 ? kSingleFile
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_safetensors(directory / name, shards[i]);
    for (const TensorSource& tensor : shards[i]) weight_map[tensor.name] = name;
  }
  if (shards.size() > 1) {
    const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    write_json(directory / kIndexFile, index);
  }
  if (copy_from.empty()) return;
  for (const char* name : kCopiedFiles) {
    std::error_code error;
    if (!fs::is_regular_file(copy_from / name, error)) continue;
    if (!fs::copy_file(copy_from / name, directory / name, fs::copy_options::overwrite_existing, error))
      fail_input("{}: cannot copy to {}: {}", (copy_from / name).string(), directory.string(),
                 error.message());
  }
}

}  // namespace sinklora
