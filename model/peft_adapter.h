// PEFT LoRA adapter directories: adapter_config.json and adapter_model.safetensors, in and out.
#pragma once

#include <map>
#include <optional>

#include "model/adapter_config.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace sinklora {

// The seven linears of a LLaMA block, in the order in which they are used.
inline constexpr const char* kLinearNames[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                               "gate_proj", "up_proj", "down_proj"};

struct AdapterModule {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t rank = 0;
  double scale = 1.0;  // alpha / rank, or alpha / sqrt(rank) with rsLoRA
  HostTensor a;        // f32 [rank, in]
  HostTensor b;        // f32 [out, rank]
};

struct Adapter {
  std::vector<AdapterModule> modules;
  // Whole tensors that replace the base's, by their name in the base ("model.embed_tokens.weight"); f32.
  // With tied embeddings, an adapter that holds embed_tokens without lm_head leaves the head as the base has
  // it.
  std::map<std::string, HostTensor> replaced;
  Json config;                         // adapter_config.json as read
  std::string source = "the adapter";  // its directory, for messages
};

// Whether a base that uses its embedding as its head still does so with this adapter: it replaces neither, or both,
// and by the same numbers once they are rounded to `dtype`.
bool keeps_head_tied(const Adapter& adapter, DType dtype = DType::f32);

// Reads and checks against the base: every module and replaced tensor must exist there with fitting shapes.
// Refuses by name what is not implemented (use_dora, lora_bias, fan_in_fan_out, ...); unknown keys are
// named on stderr. `embed_rows`: what to do with V+1 embedding rows over a base of V (LongLoRA adds a [PAD]
// row): "" refuses, "drop" leaves the last rows out, "keep" hands all of them to merge_adapter(), which makes
// the vocabulary larger. Files that a SHA256SUMS beside them lists must be what it says.
Adapter read_adapter(const std::filesystem::path& directory, const LlamaConfig& base,
                     const std::string& embed_rows = "");

// What an adapter holds, as far as it can be known without its base.
struct AdapterLayout {
  struct Module {
    std::string name;
    int64_t rank = 0, in = 0, out = 0;
    double scale = 1.0;
  };
  AdapterSettings settings;
  std::vector<Module> modules;       // by layer, then in the order of kLinearNames
  std::vector<TensorInfo> replaced;  // names as in the base
  int64_t parameters = 0;            // a head that is the embedding once more is not counted
};
AdapterLayout read_adapter_layout(const std::filesystem::path& directory);

// How an adapter was trained, in the file sinklora.json beside it: PEFT has no place for it, and a model that
// is used with other RoPE angles than those it was trained with is worth nothing.
struct AdapterRunInfo {
  std::optional<RopeScaling> rope;  // empty: the file does not say; Type::none: trained without scaling
  int64_t context = 0;              // 0: not known
  std::string base = {};            // weights_identity() of what it was trained on; "": not known
};
AdapterRunInfo read_run_info(
    const std::filesystem::path& adapter_directory);  // empty when there is no such file
void write_run_info(const std::filesystem::path& adapter_directory, const AdapterRunInfo& info);
// Says on standard error that the adapter's run info names other weights than the model's.
void note_other_base(const std::filesystem::path& adapter_directory, const std::filesystem::path& model);

// Writes both files into an existing directory. One alpha for all modules (scale = alpha / rank).
// modules_to_save is derived from `adapter.replaced`.
void write_adapter(const std::filesystem::path& directory, const Adapter& adapter, double alpha,
                   const std::string& base_model_path);

}  // namespace sinklora
