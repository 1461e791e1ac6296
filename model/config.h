// config.json of a Hugging Face LLaMA directory, checked before anything is allocated.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "kernels/dtype.h"

namespace sinklora {

// How RoPE's angles are stretched; formulas at inverse_frequencies() in model/rope.h.
struct RopeScaling {
  enum class Type { none, linear, dynamic, yarn, llama3 } type = Type::none;
  double factor = 1.0;
  int64_t original_context = 0;                          // original_max_position_embeddings; 0: not given
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double attention_factor = 0.0, beta_fast = 32.0, beta_slow = 1.0;  // yarn; 0: 0.1 ln(factor) + 1
  double mscale = 0.0, mscale_all_dim = 0.0;  // yarn, DeepSeek's spelling; 0: not given
  bool truncate = true;                       // yarn
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

struct LlamaConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int64_t num_layers = 32;
  int64_t num_heads = 32;
  int64_t num_kv_heads = 32;
  int64_t head_dim = 128;
  int64_t max_positions = 2048;  // max_position_embeddings
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope;
  bool tied_embeddings = false;  // lm_head is embed_tokens
  int32_t bos_id = 1;
  std::vector<int32_t> eos_ids{2};
  int32_t pad_id = -1;
  DType dtype = DType::bf16;  // of the weights, as the file says
  Json raw;                   // the file as it was read: written back by export with our changes on top

  int64_t query_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
  int64_t qkv_width() const { return query_width() + 2 * kv_width(); }
};

// Throws Error(input) naming `source`, the key, the value found and the values wanted. Settings that change
// the maths and are not implemented (attention_bias, mlp_bias, another hidden_act or model_type, longrope,
// quantization_config) are refused by name; pretraining_tp > 1, which does not change it, is fine. An
// original_max_position_embeddings beside the RoPE scaling must be the one in it: releases of transformers differ there.
LlamaConfig parse_config(const Json& json, const std::string& source);
LlamaConfig read_config(const std::filesystem::path& model_directory);
// config.raw with every field above written over it, in the 4.x spelling (rope_theta, rope_scaling), which
// both generations of transformers read.
Json config_json(const LlamaConfig& config);

// The object that transformers keeps in rope_scaling (4.x; "rope_type" or "type") or rope_parameters (5.x),
// or null for none. Unknown types and unknown keys are refused by name. `max_positions` stands in for a
// missing original_max_position_embeddings of llama3 and yarn.
RopeScaling parse_rope_object(const Json& json, int64_t max_positions, const std::string& source);
Json rope_object(const RopeScaling& scaling);  // null for none

// "none", "auto", "linear:4", "dynamic:2", "yarn:4", "llama3:8": the --rope-scaling option. `auto` is
// position interpolation as LongLoRA sets it: linear with factor ceil(context / max_positions) when the
// context is longer than the model's reach, else the scaling the model came with. (LongLoRA divides by a
// factor that the model has already, and then drops that factor: its positions would be less interpolated
// than before.) Throws Error(usage) where the model's own scaling is of another type and does not reach.
RopeScaling parse_rope_scaling(const std::string& text, const LlamaConfig& config, int64_t context);
std::string describe(const RopeScaling& scaling);  // "linear x4"
double reach_of(const LlamaConfig& config);        // positions that the model's own scaling, or none, serves
RopeScaling own_scaling(const LlamaConfig& config);  // that of config.raw, where there is one
// max_positions of a model after training at `context`: without scaling the angles up to there are its own now. With a
// llama3 that it did not come with, how far that reaches: its formula does not contain this number, and programs take
// it for the model's longest context.
int64_t trained_reach(const LlamaConfig& config, int64_t context);

}  // namespace sinklora
