// The parameters of a LLaMA: frozen ones, trained ones with their gradients, LoRA adapters; in one arena
// each.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/arena.h"
#include "model/hf_directory.h"
#include "model/peft_adapter.h"
#include "model/sharded_base.h"

namespace sinklora {

struct AdapterSpec {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int64_t rank = 0;
  double scale = 1.0;
};

// What of a model is trained and how it is kept.
struct ModelOptions {
  std::vector<AdapterSpec> adapters;  // LoRA on these linears
  bool train_adapters = false;
  bool train_embeddings = false;    // LoRA+ of LongLoRA: embed_tokens ...
  bool train_norms = false;         // ... and every RMSNorm; not lm_head
  bool train_all = false;           // full fine-tuning
  bool untie_head = false;          // an adapter replaced one of two tied matrices
  DType frozen_dtype = DType::f32;  // of matrices that are not trained
  int base_ranks = 1;               // that share the frozen matrices of the layers (model/sharded_base.h)
};

// A LoRA spec of one rank for every layer, on linears named by q, k, v, o, gate, up, down.
std::vector<AdapterSpec> uniform_adapters(const LlamaConfig& config, const std::vector<std::string>& targets,
                                          int64_t rank, double alpha);
// The spec of an adapter that was read from disk.
std::vector<AdapterSpec> adapter_specs(const Adapter& adapter);

struct Weight {
  Tensor value;     // what the forward reads
  Tensor master;    // what the optimizer updates: `value` itself unless that is a rounded copy
  Tensor gradient;  // empty: frozen
  Tensor m, v;      // AdamW's moments
};

// A linear of the block: one projection or several stacked, with its adapters.
struct Projection {
  struct Part {
    std::string module;  // its name in a checkpoint, without ".weight"
    int64_t row_begin, rows;
  };
  std::vector<Part> parts;
  int64_t total_rank = 0;  // R
  bool trained = false;    // the matrix itself
  Weight weight;           // [out, in]
  Weight a;                // [R, in], the A of every adapter behind one another
  std::vector<Weight> b;   // [rows of the part, rank]
  std::vector<LinearAdapter> adapters;
  std::vector<AdapterGradient> adapter_gradients;

  Linear linear() const { return {weight.value, adapters}; }
  LinearGradient gradient() const { return {weight.gradient, adapter_gradients}; }
  // Whether its backward reads its input.
  bool needs_input() const { return trained || total_rank > 0; }
};

struct LayerWeights {
  Weight attention_norm;        // [H]
  Projection qkv;               // [(Hq + 2 Hkv) D, H]
  Projection output;            // [H, Hq D]
  Weight mlp_norm;              // [H]
  Projection gate_up;           // [2F, H]
  Projection down;              // [H, F]
  int64_t gradients_begin = 0;  // its first byte in Weights::gradients, where layers follow one another
};

// One tensor as a checkpoint names it.
struct Parameter {
  std::string name;
  Weight weight;
  bool decays = true;       // weight decay applies; not to norms, as in transformers
  int64_t base_layer = -1;  // it is a matrix of this layer of a base that ranks share; -1: it is always there
  bool trained() const { return static_cast<bool>(weight.gradient); }
};

class Weights {
 public:
  // Lays the arenas out; `act` and `stat` are the backend's types.
  Weights(const LlamaConfig& config, const ModelOptions& options, DType act, DType stat);
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // What is trained lies in arenas of one shape: masters, the rounded copies that the forward reads (none
  // where it reads the masters), gradients and both moments, each tensor at the same elements of all of them.
  Arena frozen{"frozen weights"}, trained{"trained weights"}, rounded{"their rounded copies"},
      gradients{"gradients"}, first_moments{"first moments"}, second_moments{"second moments"};
  ShardedBase base;
  void allocate(Ops& ops);

  Weight embedding;   // [V, H]
  Weight head;        // [V, H]; the embedding when tied
  Weight final_norm;  // [H]
  std::vector<LayerWeights> layers;
  std::vector<Parameter> parameters;  // after allocate(): frozen and trained ones, each tensor once
  bool tied() const { return tied_; }

  // Calls set(parameter) for all of them in order, each of which writes to its weight: the only way to write
  // to a base that ranks share.
  void fill(Ops& ops, const std::function<void(const Parameter&)>& set);
  void load(Ops& ops, const ModelDirectory& model);
  // Puts an adapter's matrices and replaced tensors in place; its modules must be those of the options.
  void load_adapter(Ops& ops, const Adapter& adapter);
  // Normal(0, 0.02) matrices and gains of one, as transformers initialises a LLaMA.
  void initialize(Ops& ops, uint64_t seed);
  // A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, as PEFT), B zero.
  void initialize_adapters(Ops& ops, uint64_t seed);
  // The current adapters and trained tensors, in f32 on the host.
  Adapter adapter(Ops& ops) const;
  int64_t trained_elements() const;

 private:
  void take(Weight* weight, bool train, std::initializer_list<int64_t> shape, bool matrix);
  void take_projection(Projection* projection, int64_t layer, const std::string& name,
                       std::vector<Projection::Part> parts, int64_t in);
  void bind_projection(Projection& projection);
  void name_parameters();
  const Parameter& parameter(const std::string& name) const;

  LlamaConfig config_;
  ModelOptions options_;
  DType act_, stat_;
  bool tied_;
};

// Converts host numbers to the tensor's type and writes them there.
void upload_numbers(Ops& ops, const Tensor& to, std::span<const float> numbers);
// Reads a tensor and converts it; Number is float or double.
template <class Number>
std::vector<Number> download_numbers(Ops& ops, const Tensor& from);

}  // namespace sinklora
