#include "model/hf_directory.h"

#include <doctest/doctest.h>

#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

LlamaConfig tiny_config(bool tied = false) {
  LlamaConfig config;
  config.vocab_size = 12;
  config.hidden_size = 8;
  config.intermediate_size = 12;
  config.num_layers = 2;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 4;
  config.tied_embeddings = tied;
  config.dtype = DType::f32;
  return config;
}

// Tensors of a model, element i of tensor k being k + i / 1000.
std::vector<HostTensor> tiny_tensors(const LlamaConfig& config) {
  std::vector<HostTensor> tensors;
  for (const TensorInfo& info : expected_tensors(config)) {
    std::vector<float> values(static_cast<size_t>(info.elements()));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(tensors.size()) + static_cast<float>(i) / 1000.f;
    tensors.push_back(host_tensor(info.name, info.shape, values));
  }
  return tensors;
}

std::vector<TensorSource> sources(const std::vector<HostTensor>& tensors) {
  std::vector<TensorSource> result;
  for (const HostTensor& tensor : tensors)
    result.push_back({tensor.name, tensor.dtype, tensor.shape, [&](const auto& sink) { sink(tensor.data); }});
  return result;
}

// A directory with one weights file of these tensors.
void write_model(const fs::path& directory, const LlamaConfig& config,
                 const std::vector<HostTensor>& tensors) {
  write_text_atomically(directory / "config.json", config_json(config).dump());
  write_safetensors(directory / "model.safetensors", tensors);
}

std::string open_error(const fs::path& directory) {
  return error_of([&] { ModelDirectory model(directory); });
}
// A model in four shards with its index, and a way to spoil the index.
struct Sharded {
  TemporaryDirectory folder;
  LlamaConfig config = tiny_config();
  Sharded() { write_model_directory(folder.path(), config, sources(tiny_tensors(config)), {}, 1000); }
  fs::path index_path() const { return folder / "model.safetensors.index.json"; }
  template <class Change>
  std::string with(Change change) const {
    const Json original = read_json(index_path());
    Json index = original;
    change(index);
    write_text_atomically(index_path(), index.dump());
    const std::string found = open_error(folder.path());
    write_text_atomically(index_path(), original.dump());
    return found;
  }
};

}  // namespace

TEST_CASE("model directory: shards and a single file hold the same model") {
  const Sharded sharded;
  const TemporaryDirectory single;
  const auto tensors = tiny_tensors(sharded.config);
  write_model_directory(single.path(), sharded.config, sources(tensors), {});
  CHECK(fs::exists(single / "model.safetensors"));
  CHECK(!fs::exists(single / "model.safetensors.index.json"));
  const ModelDirectory a(sharded.folder.path()), b(single.path());
  CHECK(fs::exists(sharded.folder / "model-00001-of-00006.safetensors"));
  int64_t parameters = 0;
  for (const HostTensor& tensor : tensors) {
    CHECK(bytes_of(a, tensor.name) == tensor.data);
    CHECK(bytes_of(b, tensor.name) == tensor.data);
    parameters += a.info(tensor.name).elements();
  }
  CHECK(a.parameters() == parameters);
  std::vector<float> three(3);
  a.read("model.norm.weight", 2, three);
  CHECK(three == std::vector<float>{19.002f, 19.003f, 19.004f});
  for (const auto& entry : fs::directory_iterator(sharded.folder.path()))
    if (entry.path().extension() == ".safetensors") {
      const SafetensorsFile shard(entry.path());
      int64_t bytes = 0;
      for (const TensorInfo& info : shard.tensors()) bytes += info.bytes;
      CHECK((bytes <= 1000 || shard.tensors().size() == 1));
    }
}

TEST_CASE("model directory: file names in the index that lead elsewhere are refused before they are opened") {
  const Sharded sharded;
  write_safetensors(sharded.folder.path().parent_path() / "outside.safetensors",
                    tiny_tensors(sharded.config));
  for (const std::string& name :
       {std::string("../outside.safetensors"), std::string("/etc/passwd"), std::string("a/b"),
        std::string(".."), std::string("."), std::string(), std::string("a\0b", 3), std::string(300, 'x'),
        std::string("a\\b"), std::string("a..b")}) {
    CAPTURE(name);
    check_contains(sharded.with([&](Json& index) { index["weight_map"]["model.norm.weight"] = name; }),
                   "wanted a bare file name");
  }
  fs::remove(sharded.folder.path().parent_path() / "outside.safetensors");
  check_contains(sharded.with([&](Json& index) { index["weight_map"]["model.norm.weight"] = 3; }),
                 "wanted a file name");
  check_contains(sharded.with([&](Json& index) { index.erase("weight_map"); }), "weight_map");
  check_contains(
      sharded.with([&](Json& index) { index["weight_map"]["model.norm.weight"] = "absent.safetensors"; }),
      "cannot open");
  write_text_atomically(sharded.index_path(), std::string(100'000, '['));
  check_contains(open_error(sharded.folder.path()), "nesting");
}

TEST_CASE("model directory: links may stay inside or lead into the download cache, nowhere else") {
  const TemporaryDirectory cache;
  const fs::path snapshot = cache / "snapshots/abc", blobs = cache / "blobs", other = cache / "other";
  for (const fs::path& path : {snapshot, blobs, other}) fs::create_directories(path);
  const LlamaConfig config = tiny_config();
  write_model(snapshot, config, tiny_tensors(config));
  fs::rename(snapshot / "model.safetensors", blobs / "0123");
  fs::create_symlink("../../blobs/0123", snapshot / "model.safetensors");
  CHECK(open_error(snapshot).empty());
  fs::rename(blobs / "0123", snapshot / "here");
  fs::remove(snapshot / "model.safetensors");
  fs::create_symlink("here", snapshot / "model.safetensors");
  CHECK(open_error(snapshot).empty());
  fs::rename(snapshot / "here", other / "there");
  fs::remove(snapshot / "model.safetensors");
  fs::create_symlink("../../other/there", snapshot / "model.safetensors");
  check_contains(open_error(snapshot), "leaves the directory");
  fs::remove(other / "there");
  check_contains(open_error(snapshot), "leads nowhere");
}

TEST_CASE("model directory: index and shards must agree; a wrong total_size is only a warning") {
  const Sharded sharded;
  const std::string first = "model-00001-of-00006.safetensors", second = "model-00002-of-00006.safetensors";
  check_contains(sharded.with([&](Json& index) { index["weight_map"]["ghost"] = first; }), "lists \"ghost\"");
  check_contains(sharded.with([&](Json& index) { index["weight_map"].erase("model.embed_tokens.weight"); }),
                 "not in the index");
  check_contains(
      sharded.with([&](Json& index) { index["weight_map"]["model.embed_tokens.weight"] = second; }),
      "the index says");
  CHECK(sharded.with([&](Json& index) { index["metadata"]["total_size"] = 5; }).empty());
  CHECK(sharded.with([&](Json& index) { index["metadata"]["total_size"] = -1e300; }).empty());
  CHECK(sharded.with([&](Json& index) { index.erase("metadata"); }).empty());
  // The same tensor in two shards.
  std::vector<HostTensor> doubled;
  const SafetensorsFile original(sharded.folder / first);
  for (const TensorInfo& info : original.tensors())
    doubled.push_back({info.name, info.dtype, info.shape, bytes_of(original, info.name)});
  const auto all = tiny_tensors(sharded.config);
  doubled.push_back(all.back());
  write_safetensors(sharded.folder / first, doubled);
  check_contains(open_error(sharded.folder.path()), "two files");
}

TEST_CASE("model directory: all defects of the tensors are named at once, 20 at most") {
  const TemporaryDirectory folder;
  const LlamaConfig config = tiny_config();
  auto tensors = tiny_tensors(config);
  tensors[1] = host_tensor(tensors[1].name, {9}, std::vector<float>(9));          // misshaped
  tensors[2] = {tensors[2].name, DType::i32, tensors[2].shape, tensors[2].data};  // of integers
  tensors.pop_back();                                                             // lm_head is missing
  tensors.push_back(
      host_tensor("model.layers.0.self_attn.q_proj.bias", {8}, std::vector<float>(8)));  // extra
  tensors.push_back(
      host_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", {2}, {1, 2}));  // old, ignored
  write_model(folder.path(), config, tensors);
  const std::string found = open_error(folder.path());
  check_contains(found, "4 defects");
  check_contains(found, "model.layers.0.input_layernorm.weight has shape [9], wanted [8]");
  check_contains(found, "model.layers.0.self_attn.q_proj.weight has dtype i32");
  check_contains(found, "lm_head.weight is missing");
  check_contains(found, "q_proj.bias\" is no tensor of this model");
  CHECK(found.find("inv_freq") == std::string::npos);

  LlamaConfig deep = config;
  deep.num_layers = 30;
  write_text_atomically(folder / "config.json", config_json(deep).dump());
  check_contains(open_error(folder.path()), "and 236 more");
}

TEST_CASE("model directory: tied embeddings, with and without a stored head") {
  const TemporaryDirectory folder;
  const LlamaConfig tied = tiny_config(true);
  write_model(folder.path(), tied, tiny_tensors(tied));
  CHECK(ModelDirectory(folder.path()).config().tied_embeddings);
  const int64_t parameters = ModelDirectory(folder.path()).parameters();
  std::vector<HostTensor> with_head = tiny_tensors(tiny_config(false));
  with_head.back().data = with_head.front().data;
  write_model(folder.path(), tied, with_head);
  CHECK(ModelDirectory(folder.path()).parameters() == parameters);
  // transformers 5 uses a head that differs, earlier ones the embedding: what is meant must be said.
  with_head.back().data.back() ^= std::byte{1};
  write_model(folder.path(), tied, with_head);
  check_contains(open_error(folder.path()),
                 "lm_head.weight differs from model.embed_tokens.weight, although config.json sets "
                 "tie_word_embeddings");
  write_model(folder.path(), tiny_config(false), tiny_tensors(tied));
  check_contains(open_error(folder.path()),
                 "lm_head.weight is missing (and config.json does not set tie_word_embeddings)");
}

TEST_CASE("model directory: what is not there is said, pickles are not read, a named pipe does not block") {
  const TemporaryDirectory folder;
  check_contains(open_error(folder.path()), "holds no config.json");
  check_contains(open_error(folder / "nowhere"), "nowhere: does not exist");
  write_text_atomically(folder / "config.json", config_json(tiny_config()).dump());
  check_contains(open_error(folder.path()), "neither model.safetensors nor");
  write_bytes(folder / "pytorch_model.bin", "x");
  check_contains(open_error(folder.path()), "save_pretrained");
  REQUIRE(::system(("mkfifo " + (folder / "model.safetensors").string()).c_str()) == 0);
  check_contains(open_error(folder.path()), "not a regular file");
}

TEST_CASE("model directory: what stands where one is wanted is said, with what to give in its place") {
  const TemporaryDirectory folder;
  const auto said = [&](const fs::path& path, const std::string& part) {
    check_contains(open_error(path), part);
  };
  const LlamaConfig config = tiny_config();
  const fs::path cache = folder / "models--a--b";
  fs::create_directories(cache / "snapshots/0123abcd");
  write_model(cache / "snapshots/0123abcd", config, tiny_tensors(config));
  said(cache, "give " + (cache / "snapshots/0123abcd").string());
  said(cache / "snapshots", "give " + (cache / "snapshots/0123abcd").string());
  const fs::path model = cache / "snapshots/0123abcd";
  for (const char* file : {"model.safetensors", "config.json"})
    said(model / file, "is a file: give the directory that holds it, " + model.string());
  write_bytes(folder / "q4.gguf", "GGUF");
  said(folder / "q4.gguf", "gguf_file=");
  said(folder.path(), "gguf_file=");

  fs::rename(model / "model.safetensors", model / "model.fp16.safetensors");
  said(model, "rename model.fp16.safetensors, if it is the whole model");
  fs::rename(model / "model.fp16.safetensors", model / "consolidated.safetensors");
  said(model, "consolidated.safetensors, which names the tensors otherwise");
  // An adapter may have its base's config.json beside it.
  fs::rename(model / "consolidated.safetensors", model / "adapter_model.safetensors");
  write_bytes(model / "adapter_config.json", "{}");
  said(model, "is an adapter: give it as --adapter");
  fs::remove(model / "adapter_config.json");
  fs::rename(model / "adapter_model.safetensors", model / "x.gguf");
  said(model, "gguf_file=\"x.gguf\"");
  fs::rename(model / "x.gguf", model / "consolidated.00.pth");
  fs::rename(model / "config.json", model / "params.json");
  said(model, "Meta's own format");
}

TEST_CASE("model directory: names that torch.compile has changed are told in one sentence") {
  const TemporaryDirectory folder;
  const LlamaConfig config = tiny_config();
  auto tensors = tiny_tensors(config);
  for (HostTensor& tensor : tensors) tensor.name = "_orig_mod." + tensor.name;
  write_model(folder.path(), config, tensors);
  check_contains(open_error(folder.path()), "torch.compile");
  CHECK(open_error(folder.path()).find("is missing") == std::string::npos);
}

TEST_CASE(
    "model directory: models that transformers saved are read; without a dtype it is that of the weights") {
  const ModelDirectory base(golden("peft/base")), tied(golden("peft/base_tied"));
  CHECK(base.config().dtype == DType::bf16);
  CHECK(base.config().eos_ids == std::vector<int32_t>{2, 3});
  CHECK(base.parameters() == tied.parameters() + 24 * 16);
  CHECK(tied.config().tied_embeddings);
  const TemporaryDirectory folder;
  LlamaConfig config = tiny_config();
  Json json = config_json(config);
  json.erase("torch_dtype");
  write_model(folder.path(), config, tiny_tensors(config));
  write_text_atomically(folder / "config.json", json.dump());
  CHECK(ModelDirectory(folder.path()).config().dtype == DType::f32);
}

TEST_CASE("model directory: the tokenizer's files come along, and nothing else") {
  const TemporaryDirectory from, to;
  for (const char* name : {"tokenizer.json", "chat_template.jinja", "secret.txt"})
    write_bytes(from / name, name);
  const LlamaConfig config = tiny_config();
  write_model_directory(to.path(), config, sources(tiny_tensors(config)), from.path());
  CHECK(read_text(to / "tokenizer.json", 100) == "tokenizer.json");
  CHECK(fs::exists(to / "chat_template.jinja"));
  CHECK(!fs::exists(to / "secret.txt"));
  auto lacking = tiny_tensors(config);
  lacking.pop_back();
  CHECK_THROWS_AS(write_model_directory(to.path(), config, sources(lacking), {}), Error);
}
