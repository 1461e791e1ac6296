#include "model/describe.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/format.h"
#include "model/checksums.h"
#include "model/hf_directory.h"
#include "model/peft_adapter.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kPieceElements = int64_t{1} << 20;

bool is_float(const TensorInfo& info) {
  return info.foreign_dtype.empty() && info.dtype != DType::i32 && info.dtype != DType::i64;
}

std::string type_of(const TensorInfo& info) {
  return info.foreign_dtype.empty() ? std::string(name_of(info.dtype)) : info.foreign_dtype;
}

// `read(begin, values)` fills values from element `begin` on.
template <class Read>
void check_values(const std::string& file, const TensorInfo& info, Read read) {
  std::vector<float> values;
  const int64_t elements = info.elements();
  for (int64_t at = 0; at < elements; at += kPieceElements) {
    values.resize(static_cast<size_t>(std::min(kPieceElements, elements - at)));
    read(at, std::span<float>(values));
    const auto bad =
        std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
    if (bad != values.end())
      fail_input("{}: tensor {}: element {} is {}", file, info.name, at + (bad - values.begin()), *bad);
  }
}

std::string describe(const ModelDirectory& model) {
  const LlamaConfig& config = model.config();
  std::set<std::string> types;
  for (const TensorInfo& info : expected_tensors(config)) types.insert(type_of(model.info(info.name)));
  return fmt::format(
      "model    {}\n"
      "         LLaMA, {} layers, hidden {}, MLP {}, {} heads of {} ({} for keys and values)\n"
      "weights  {} parameters as {}, {} tokens, embedding and head {}\n"
      "context  {} positions, rope theta {}, scaling {}\n"
      "tokens   bos {}, eos {}, pad {}\n",
      model.path().string(), config.num_layers, config.hidden_size, config.intermediate_size,
      config.num_heads, config.head_dim, config.num_kv_heads,
      format_count(static_cast<double>(model.parameters())), fmt::join(types, "/"), config.vocab_size,
      config.tied_embeddings ? "tied" : "apart", config.max_positions, config.rope_theta,
      sinklora::describe(config.rope), config.bos_id, fmt::join(config.eos_ids, "/"), config.pad_id);
}

std::string describe(const SafetensorsFile& file) {
  std::set<std::string> types;
  int64_t elements = 0;
  for (const TensorInfo& info : file.tensors()) {
    types.insert(type_of(info));
    elements += info.elements();
  }
  return fmt::format("file     {}\n         {} tensors, {} numbers as {}\n", file.path().string(),
                     file.tensors().size(), format_count(static_cast<double>(elements)),
                     fmt::join(types, "/"));
}

}  // namespace

std::string describe_model(const fs::path& directory) { return describe(ModelDirectory(directory)); }
std::string describe_safetensors(const fs::path& path) { return describe(SafetensorsFile(path)); }

std::string describe_adapter(const fs::path& directory) {
  const AdapterLayout layout = read_adapter_layout(directory);
  const AdapterRunInfo run = read_run_info(directory);
  std::set<std::string> targets;
  std::set<int64_t> ranks;
  for (const auto& module : layout.modules) {
    targets.insert(module.name.substr(module.name.rfind('.') + 1));
    ranks.insert(module.rank);
  }
  std::set<std::string> kinds;
  for (const TensorInfo& info : layout.replaced) {
    const std::string module = info.name.substr(0, info.name.rfind('.'));
    kinds.insert(module.substr(module.rfind('.') + 1));
  }
  std::string text = fmt::format(
      "adapter  {}\n"
      "         LoRA of rank {} on {} ({} modules), alpha {}{}\n"
      "replaced {}\n"
      "trained  {} parameters\n"
      "base     {}\n",
      directory.string(), fmt::join(ranks, "/"), fmt::join(targets, ", "), layout.modules.size(),
      layout.settings.alpha, layout.settings.rslora ? ", rank-stabilized" : "",
      kinds.empty() ? "nothing"
                    : fmt::format("{} ({} tensors)", fmt::join(kinds, ", "), layout.replaced.size()),
      format_count(static_cast<double>(layout.parameters)),
      layout.settings.base_model.empty() ? "not named" : layout.settings.base_model);
  if (run.context != 0 || run.rope)
    text += fmt::format("context  {} tokens, rope scaling {}\n", run.context,
                        run.rope ? sinklora::describe(*run.rope) : "not named");
  return text;
}

std::string verify_model(const fs::path& directory) {
  const ModelDirectory model(directory);
  if (fs::exists(directory / "SHA256SUMS")) verify_sums(directory);
  for (const TensorInfo& expected : expected_tensors(model.config()))
    check_values(directory.string(), model.info(expected.name),
                 [&](int64_t at, std::span<float> out) { model.read(expected.name, at, out); });
  return describe(model);
}

std::string verify_adapter(const fs::path& directory) {
  std::string text = describe_adapter(directory);
  if (fs::exists(directory / "SHA256SUMS")) verify_sums(directory);
  for (const auto& entry :
       fs::directory_iterator(directory))  // a checkpoint keeps its optimizer's state beside it
    if (entry.path().extension() == ".safetensors") verify_safetensors(entry.path());
  const fs::path base = read_adapter_layout(directory).settings.base_model;
  std::error_code error;
  if (base.empty() || !fs::exists(base / "config.json", error))
    return text + "         the base is not here: not compared with it\n";
  const LlamaConfig config = read_config(base);
  read_adapter(directory, config, "keep");
  return text + "         fits its base\n";
}

std::string verify_safetensors(const fs::path& path) {
  const SafetensorsFile file(path);
  for (const TensorInfo& info : file.tensors())
    if (is_float(info))
      check_values(path.string(), info, [&](int64_t at, std::span<float> out) { file.read(info, at, out); });
  return describe(file);
}

}  // namespace sinklora
