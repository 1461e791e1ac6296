#include "model/peft_adapter.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <span>
#include <tuple>

#include "base/error.h"
#include "base/json_fields.h"
#include "model/checksums.h"
#include "model/defects.h"
#include "model/expected_directory.h"
#include "model/hf_directory.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kWeightsFile = "adapter_model.safetensors";
constexpr const char* kWholeTensorsFile = "trainable_params.bin";
constexpr const char* kRunInfoFile = "sinklora.json";
constexpr std::string_view kPrefix = "base_model.model.";
constexpr int64_t kMaxConfigBytes = int64_t{1} << 19;

std::string linear_name(int64_t layer, size_t linear) {
  return fmt::format("model.layers.{}.{}.{}", layer, linear < 4 ? "self_attn" : "mlp", kLinearNames[linear]);
}

// Layer and index into kLinearNames of "model.layers.3.mlp.up_proj"; {-1, 0} for any other name.
std::pair<int64_t, size_t> parse_linear(const std::string& module) {
  constexpr std::string_view start = "model.layers.";
  if (!module.starts_with(start)) return {-1, 0};
  const size_t dot = module.find('.', start.size());
  if (dot == std::string::npos || dot - start.size() > 4 || dot == start.size()) return {-1, 0};
  int64_t layer = 0;
  for (size_t i = start.size(); i < dot; ++i) {
    if (module[i] < '0' || module[i] > '9') return {-1, 0};
    layer = layer * 10 + (module[i] - '0');
  }
  for (size_t linear = 0; linear < std::size(kLinearNames); ++linear)
    if (module == linear_name(layer, linear)) return {layer, linear};
  return {-1, 0};
}

// Python that makes adapter_model.safetensors of `load`, with LongLoRA's whole tensors if they lie beside it.
std::string conversion(const fs::path& directory, const std::string& load) {
  std::error_code error;
  const bool whole = fs::exists(directory / kWholeTensorsFile, error);
  return fmt::format(
      "weights = {}; {}safetensors.torch.save_file(weights, \"{}\"){}", load,
      whole ? fmt::format("weights.update({{\"base_model.model.\" + k: v for k, v in torch.load(\"{}\", "
                          "weights_only=True).items()}}); ",
                          kWholeTensorsFile)
            : "",
      kWeightsFile,
      whole
          ? fmt::format(
                "; and list \"embed_tokens\", \"input_layernorm\", \"post_attention_layernorm\", \"norm\" in "
                "the modules_to_save of {}, as far as they are in it",
                kConfigFile)
          : "");
}

fs::path weights_path(const fs::path& directory) {
  std::error_code error;
  if (!fs::exists(directory / kWeightsFile, error) && fs::exists(directory / "adapter_model.bin", error))
    fail_input(
        "{}: only pickled weights (adapter_model.bin), which are never read here; convert them once in "
        "Python: {}",
        directory.string(), conversion(directory, "torch.load(\"adapter_model.bin\", weights_only=True)"));
  return directory / kWeightsFile;
}

// LongLoRA keeps the embeddings and norms that it has trained in a file of its own, and the model is nothing without
// them.
void expect_whole_tensors(const AdapterLayout& layout, const fs::path& directory) {
  std::error_code error;
  if (!fs::exists(directory / kWholeTensorsFile, error)) return;
  std::set<int64_t> layers;
  for (const AdapterLayout::Module& module : layout.modules) layers.insert(parse_linear(module.name).first);
  std::vector<std::string> missing{kEmbedding};
  for (const int64_t layer : layers)
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"})
      missing.push_back(fmt::format("model.layers.{}.{}.weight", layer, norm));
  missing.push_back("model.norm.weight");
  for (const TensorInfo& info : layout.replaced) std::erase(missing, info.name);
  if (missing.empty()) return;
  const auto named = std::span(missing).first(std::min<size_t>(missing.size(), 4));
  fail_input(
      "{}: the embeddings and norms of LongLoRA, and {} lacks {} of them: {}{}; pickled, they are never read "
      "here: put them in once in Python: {}. If it holds no others than are in there, take the file away",
      (directory / kWholeTensorsFile).string(), kWeightsFile, missing.size(), fmt::join(named, ", "),
      missing.size() > named.size() ? ", ..." : "",
      conversion(directory, fmt::format("safetensors.torch.load_file(\"{}\")", kWeightsFile)));
}

// A pair of LoRA matrices as it comes together from the file.
struct Pair {
  const TensorInfo* a = nullptr;
  const TensorInfo* b = nullptr;
};

// Where PEFT saves whole embeddings, as it does by itself after a resize, it also writes what a wrapper of modules_to_save
// holds: the trained copy once more and the base's. It uses neither when it reads the file.
bool is_wrappers_copy(const SafetensorsFile& file, const std::string& name) {
  for (const std::string_view end : {".modules_to_save.weight", ".original_module.weight"})
    if (name.ends_with(end))
      return file.find(name.substr(0, name.size() - end.size()) + ".weight") != nullptr;
  return false;
}

AdapterLayout layout_of(const SafetensorsFile& file, AdapterSettings settings) {
  expect_plain_names(file);
  std::map<std::tuple<int64_t, size_t>, Pair> pairs;
  Defects defects;
  AdapterLayout layout;
  for (const TensorInfo& info : file.tensors()) {
    if (is_wrappers_copy(file, info.name)) continue;
    layout.parameters += info.elements();
    std::string name = info.name;
    if (!name.starts_with(kPrefix)) {
      defects.add("the tensor {} does not begin with {}", shown(Json(name)), kPrefix);
      continue;
    }
    name = name.substr(kPrefix.size());
    const bool is_a = name.ends_with(".lora_A.weight"), is_b = name.ends_with(".lora_B.weight");
    if (is_a || is_b) {
      const auto [layer, linear] =
          parse_linear(name.substr(0, name.size() - std::string_view(".lora_A.weight").size()));
      if (layer < 0 || info.shape.size() != 2) {
        defects.add("{} [{}] is no LoRA matrix of one of the seven linears of a block",
                    shown(Json(info.name)), fmt::join(info.shape, ", "));
        continue;
      }
      Pair& pair = pairs[{layer, linear}];
      (is_a ? pair.a : pair.b) = &info;
    } else if (name.ends_with(".weight") && name.find("lora_") == std::string::npos) {
      layout.replaced.push_back(info);
      layout.replaced.back().name = name;
    } else {
      defects.add("the tensor {} is not understood", shown(Json(info.name)));
    }
  }
  for (const auto& [place, pair] : pairs) {
    AdapterLayout::Module module;
    module.name = linear_name(std::get<0>(place), std::get<1>(place));
    if (!pair.a || !pair.b) {
      defects.add("{} has lora_{} without lora_{}", module.name, pair.a ? 'A' : 'B', pair.a ? 'B' : 'A');
      continue;
    }
    module.rank = pair.a->shape[0];
    module.in = pair.a->shape[1];
    module.out = pair.b->shape[0];
    module.scale = settings.scale_of(module.name);
    const int64_t wanted = settings.rank_of(module.name);
    if (module.rank != wanted || pair.b->shape[1] != wanted)
      defects.add("{}: lora_A [{}] and lora_B [{}] do not have the rank {} of {}", module.name,
                  fmt::join(pair.a->shape, ", "), fmt::join(pair.b->shape, ", "), wanted, kConfigFile);
    if (!settings.targets.empty() && !settings.selects(module.name, std::get<0>(place)))
      defects.add("{} has a LoRA, but target_modules does not name it", module.name);
    layout.modules.push_back(std::move(module));
  }
  defects.fail_if_any(file.path().string());
  expect_whole_tensors(layout, file.path().parent_path());
  layout.settings = std::move(settings);
  return layout;
}

Json read_adapter_json(const fs::path& directory) {
  return read_json(directory / kConfigFile, kMaxConfigBytes);
}

using Shapes = std::map<std::string, std::vector<int64_t>>;

// What is in the adapter must fit the base. Rows beyond the base's vocabulary are cut off where `embed_rows`
// says so.
void check_fit(AdapterLayout& layout, const LlamaConfig& base, const Shapes& shapes,
               const std::string& embed_rows, Defects& defects) {
  for (const AdapterLayout::Module& module : layout.modules) {
    const auto at = shapes.find(module.name + ".weight");
    if (at == shapes.end())
      defects.add("{} is no module of the base, which has {} layers", module.name, base.num_layers);
    else if (at->second != std::vector<int64_t>{module.out, module.in})
      defects.add("{} maps {} to {} in the adapter, but the base has shape [{}]", module.name, module.in,
                  module.out, fmt::join(at->second, ", "));
  }
  for (TensorInfo& info : layout.replaced) {
    const auto at = shapes.find(info.name);
    if (at == shapes.end()) {
      defects.add("{} is no tensor of the base", shown(Json(info.name)));
      continue;
    }
    const bool by_token = info.name == kEmbedding || info.name == kHead;
    const bool taller = by_token && info.shape.size() == 2 && info.shape[1] == base.hidden_size &&
                        info.shape[0] > base.vocab_size;
    if (taller && embed_rows.empty())
      defects.add(
          "{} has {} rows over a base of {} (LongLoRA adds a [PAD] row); merge it with --embed-rows drop or "
          "keep",
          info.name, info.shape[0], base.vocab_size);
    else if (taller && embed_rows == "drop")
      info.shape[0] = base.vocab_size;
    else if (!taller && info.shape != at->second)
      defects.add("{} has shape [{}], the base has [{}]", info.name, fmt::join(info.shape, ", "),
                  fmt::join(at->second, ", "));
  }
}

// What target_modules and modules_to_save name must be in the adapter.
void check_complete(const AdapterLayout& layout, const LlamaConfig& base, const Shapes& shapes,
                    Defects& defects) {
  const AdapterSettings& settings = layout.settings;
  std::set<std::string> present, replaced;
  for (const AdapterLayout::Module& module : layout.modules) present.insert(module.name);
  for (const TensorInfo& info : layout.replaced) replaced.insert(info.name);
  // What modules_to_save trains whole needs no LoRA, and PEFT gives it none.
  if (!settings.targets.empty())
    for (int64_t layer = 0; layer < base.num_layers; ++layer)
      for (size_t linear = 0; linear < std::size(kLinearNames); ++linear)
        if (const std::string name = linear_name(layer, linear);
            settings.selects(name, layer) && !present.contains(name) && !replaced.contains(name + ".weight"))
          defects.add("target_modules names {}, but its matrices are missing", name);
  for (const char* other : {"model.embed_tokens", "lm_head"})
    if (!settings.targets.all_linear && settings.targets.contains(other))
      defects.add("target_modules names {}; LoRA is implemented for the linears of the blocks", other);
  for (const std::string& wanted : settings.modules_to_save)
    for (const auto& [name, shape] : shapes)
      if (name.ends_with(wanted + ".weight") && !replaced.contains(name))
        defects.add("modules_to_save names {}, but {} is missing", wanted, name);
}

void compare_with_base(AdapterLayout& layout, const LlamaConfig& base, const std::string& embed_rows,
                       const std::string& source) {
  LlamaConfig with_head = base;
  with_head.tied_embeddings = false;
  Shapes shapes;
  for (const TensorInfo& info : expected_tensors(with_head)) shapes[info.name] = info.shape;
  Defects defects;
  check_fit(layout, base, shapes, embed_rows, defects);
  check_complete(layout, base, shapes, defects);
  defects.fail_if_any(source);
}

HostTensor load(const SafetensorsFile& file, const TensorInfo& stored, const std::string& name,
                std::vector<int64_t> shape) {
  HostTensor tensor{name, DType::f32, std::move(shape), {}};
  int64_t count = 1;
  for (const int64_t dim : tensor.shape) count *= dim;
  tensor.data.resize(static_cast<size_t>(count) * sizeof(float));
  const std::span<float> values(reinterpret_cast<float*>(tensor.data.data()), static_cast<size_t>(count));
  file.read(stored, 0, values);
  for (const float value : values)
    if (!std::isfinite(value)) fail_input("{}: tensor {} holds {}", file.path().string(), stored.name, value);
  return tensor;
}

// Short names ("q_proj") where a kind of module is there in every layer, else full ones.
std::vector<std::string> compact_names(const std::set<std::string>& modules, int64_t layers) {
  std::map<std::string, std::vector<std::string>> by_kind;
  for (const std::string& module : modules) by_kind[module.substr(module.rfind('.') + 1)].push_back(module);
  std::vector<std::string> result;
  for (const auto& [kind, full] : by_kind) {
    const bool block = full.front().find(".layers.") != std::string::npos;
    if (!block || static_cast<int64_t>(full.size()) == layers)
      result.push_back(kind);
    else
      result.insert(result.end(), full.begin(), full.end());
  }
  return result;
}

int64_t layer_of(const std::string& name) {
  constexpr std::string_view start = "model.layers.";
  return name.starts_with(start) ? std::atoll(name.c_str() + start.size()) : -1;
}

Json config_of(const Adapter& adapter, double alpha, const std::string& base_model_path) {
  std::set<std::string> targets, saved;
  int64_t layers = 0;
  for (const AdapterModule& module : adapter.modules) targets.insert(module.name);
  for (const auto& [name, tensor] : adapter.replaced) saved.insert(name.substr(0, name.rfind('.')));
  for (const auto* names : {&targets, &saved})
    for (const std::string& name : *names) layers = std::max(layers, layer_of(name) + 1);
  std::vector<std::string> to_save = compact_names(saved, layers);
  // PEFT takes any module whose name ends so: "norm" alone would also ask for the norms inside the blocks.
  const auto has = [&](const char* name) {
    return std::find(to_save.begin(), to_save.end(), name) != to_save.end();
  };
  if (has("norm") && !(has("input_layernorm") && has("post_attention_layernorm")))
    std::replace(to_save.begin(), to_save.end(), std::string("norm"), std::string("model.norm"));

  const int64_t rank = adapter.modules.empty() ? 8 : adapter.modules.front().rank;
  Json rank_pattern = Json::object();
  for (const AdapterModule& module : adapter.modules) {
    if (module.rank != rank) rank_pattern[module.name] = module.rank;
    const double wanted = alpha / static_cast<double>(module.rank);
    if (std::fabs(module.scale - wanted) > 1e-9 * std::fabs(wanted))
      fail_internal("{}: scale {} is not alpha {} / rank {}", module.name, module.scale, alpha, module.rank);
  }
  const bool whole = alpha == std::floor(alpha) && alpha < 1e9;
  Json config = {{"peft_type", "LORA"},
                 {"task_type", "CAUSAL_LM"},
                 {"base_model_name_or_path", base_model_path},
                 {"inference_mode", true},
                 {"r", rank},
                 {"lora_alpha", whole ? Json(static_cast<int64_t>(alpha)) : Json(alpha)},
                 {"lora_dropout", 0.0},
                 {"bias", "none"},
                 {"fan_in_fan_out", false},
                 {"target_modules", compact_names(targets, layers)},
                 {"modules_to_save", to_save.empty() ? Json(nullptr) : Json(to_save)}};
  // No key that came later has its default: PEFT up to 0.13 refuses those that it does not know.
  if (!rank_pattern.empty()) config["rank_pattern"] = rank_pattern;
  return config;
}

}  // namespace

bool keeps_head_tied(const Adapter& adapter, DType dtype) {
  constexpr size_t kPiece = size_t{1} << 20;
  const auto embedding = adapter.replaced.find(kEmbedding), head = adapter.replaced.find(kHead),
             none = adapter.replaced.end();
  if (embedding == none || head == none) return embedding == head;
  if (embedding->second.shape != head->second.shape) return false;
  if (embedding->second.data == head->second.data) return true;
  std::vector<std::byte> a, b;
  const auto x = embedding->second.floats(), y = head->second.floats();
  for (size_t at = 0; at < x.size(); at += kPiece) {
    const size_t count = std::min(kPiece, x.size() - at);
    a.clear();
    b.clear();
    append_as(dtype, x.subspan(at, count), a);
    append_as(dtype, y.subspan(at, count), b);
    if (a != b) return false;
  }
  return true;
}

AdapterLayout read_adapter_layout(const fs::path& directory) {
  expect_adapter_directory(directory);
  const Json json = read_adapter_json(directory);
  AdapterSettings settings = parse_adapter_config(json, (directory / kConfigFile).string());
  const SafetensorsFile file(weights_path(directory));
  AdapterLayout layout = layout_of(file, std::move(settings));
  // Embedding and head of a base that ties them are one matrix, written twice.
  const TensorInfo* embedding = file.find(std::string(kPrefix) + kEmbedding);
  const TensorInfo* head = file.find(std::string(kPrefix) + kHead);
  if (embedding && head && file.equal(*embedding, file, *head)) layout.parameters -= head->elements();
  return layout;
}

Adapter read_adapter(const fs::path& directory, const LlamaConfig& base, const std::string& embed_rows) {
  const std::string config_source = (directory / kConfigFile).string();
  if (!embed_rows.empty() && embed_rows != "drop" && embed_rows != "keep")
    fail_usage("--embed-rows: '{}' is not understood; wanted drop or keep", embed_rows);
  expect_adapter_directory(directory);
  verify_sums(directory, {kConfigFile, kWeightsFile, kRunInfoFile});
  Adapter adapter;
  adapter.source = directory.string();
  adapter.config = read_adapter_json(directory);
  AdapterSettings settings = parse_adapter_config(adapter.config, config_source);
  const SafetensorsFile file(weights_path(directory));
  AdapterLayout layout = layout_of(file, std::move(settings));
  compare_with_base(layout, base, embed_rows, file.path().string());
  for (const std::string& key : unknown_adapter_keys(adapter.config))
    fmt::print(stderr, "{}: note: the setting {} is not known and has no effect\n", config_source,
               shown(Json(key)));

  const auto stored = [&](const std::string& name) -> const TensorInfo& {
    return *file.find(std::string(kPrefix) + name);
  };
  for (const AdapterLayout::Module& module : layout.modules) {
    const TensorInfo &a = stored(module.name + ".lora_A.weight"), &b = stored(module.name + ".lora_B.weight");
    adapter.modules.push_back({module.name, module.rank, module.scale,
                               load(file, a, module.name + ".lora_A.weight", a.shape),
                               load(file, b, module.name + ".lora_B.weight", b.shape)});
  }
  for (const TensorInfo& info : layout.replaced)
    adapter.replaced[info.name] = load(file, stored(info.name), info.name, info.shape);
  return adapter;
}

void write_adapter(const fs::path& directory, const Adapter& adapter, double alpha,
                   const std::string& base_model_path) {
  std::vector<TensorSource> tensors;
  const auto add = [&](const std::string& name, const HostTensor& tensor) {
    tensors.push_back({std::string(kPrefix) + name, tensor.dtype, tensor.shape,
                       [&tensor](const auto& sink) { sink(tensor.data); }});
  };
  for (const AdapterModule& module : adapter.modules) {
    add(module.name + ".lora_A.weight", module.a);
    add(module.name + ".lora_B.weight", module.b);
  }
  for (const auto& [name, tensor] : adapter.replaced) add(name, tensor);
  Json config = config_of(adapter, alpha, base_model_path);
  // Without it PEFT warns and unties them when it merges. Only where it matters: older PEFT does not know it.
  if (adapter.replaced.contains(kHead) && keeps_head_tied(adapter)) config["ensure_weight_tying"] = true;
  write_safetensors(directory / kWeightsFile, tensors);
  write_json(directory / kConfigFile, config);
}

AdapterRunInfo read_run_info(const fs::path& adapter_directory) {
  const fs::path path = adapter_directory / kRunInfoFile;
  AdapterRunInfo info;
  std::error_code error;
  if (!fs::exists(path, error)) return info;
  const Json json = read_json(path, int64_t{1} << 16);
  const JsonFields fields(json, path.string());
  info.context = fields.integer_or("context", 0, 1, int64_t{1} << 40);
  // 0: this file is ours and names the original context wherever the formula needs it.
  info.base = fields.given("base_weights") ? fields.text("base_weights") : "";
  if (fields.has("rope_scaling"))
    info.rope = parse_rope_object(json["rope_scaling"], 0, path.string() + ": rope_scaling");
  return info;
}

void note_other_base(const fs::path& adapter, const fs::path& model) {
  const std::string trained_on = read_run_info(adapter).base;
  if (!trained_on.empty() && trained_on != weights_identity(model))
    fmt::print(stderr, "note: {} was trained on other weights, or another type of them, than {} holds\n",
               adapter.string(), model.string());
}

void write_run_info(const fs::path& adapter_directory, const AdapterRunInfo& info) {
  Json json = Json::object();
  if (info.rope) json["rope_scaling"] = rope_object(*info.rope);
  if (info.context != 0) json["context"] = info.context;
  if (!info.base.empty()) json["base_weights"] = info.base;
  write_json(adapter_directory / kRunInfoFile, json);
}

}  // namespace sinklora
