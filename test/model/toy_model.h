// Small random models and batches for tests.
#pragma once

#include <memory>
#include <vector>

#include "base/random.h"
#include "model/attention_options.h"
#include "model/llama.h"

namespace sinklora::test {

inline LlamaConfig toy_config() {
  LlamaConfig config;
  config.vocab_size = 61;
  config.hidden_size = 48;
  config.intermediate_size = 56;
  config.num_layers = 2;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.max_positions = 64;
  return config;
}

// Sequences of the given lengths with random tokens; about one target in five is not scored.
inline Batch toy_batch(const std::vector<int64_t>& lengths, int64_t vocab, uint64_t seed) {
  const RandomStream random(seed, "toy batch");
  std::vector<Sample> samples;
  std::vector<int64_t> ids;
  uint64_t n = 0;
  for (const int64_t length : lengths) {
    Sample sample;
    sample.document_starts = {0};
    for (int64_t t = 0; t < length; ++t)
      sample.ids.push_back(static_cast<int32_t>(random.below(n++, static_cast<uint64_t>(vocab))));
    for (int64_t t = 0; t < length; ++t)
      sample.targets.push_back(
          t + 1 < length && random.below(n++, 5) > 0 ? sample.ids[static_cast<size_t>(t) + 1] : kNotScored);
    samples.push_back(sample);
    ids.push_back(static_cast<int64_t>(ids.size()));
  }
  return make_batch(samples, ids);
}

inline ModelOptions lora_plus(const LlamaConfig& config, const std::vector<std::string>& targets) {
  ModelOptions options;
  options.adapters = uniform_adapters(config, targets, 4, 8.0);
  options.train_adapters = options.train_embeddings = options.train_norms = true;
  return options;
}

// A model of random weights, adapters' B included, in memory.
struct ToyModel {
  ToyModel(DType compute, const LlamaConfig& config, const ModelOptions& model, int64_t tokens,
           Recompute recompute, int64_t mlp_tile = kMlpTile, int64_t context = 0)
      : ToyModel(make_cpu_ops(compute), config, model, tokens, recompute, mlp_tile, context) {}
  ToyModel(std::unique_ptr<Ops> backend, const LlamaConfig& config, const ModelOptions& model, int64_t tokens,
           Recompute recompute, int64_t mlp_tile = kMlpTile, int64_t context = 0)
      : ops(std::move(backend)),
        llama(*ops, config, with_precision(model, ops->activation_dtype()),
              {.max_tokens = tokens,
               .max_sequences = tokens,
               .max_context = context > 0 ? context : tokens,
               .training = true,
               .recompute = recompute,
               .pattern = {.num_sinks = 4},
               .mlp_tile = mlp_tile}) {
    llama.allocate();
    for (const Parameter& parameter : llama.weights().parameters) {
      // Wide enough for softmax, SwiGLU and norms to be far from linear.
      const RandomStream random(11, parameter.name);
      std::vector<float> numbers(static_cast<size_t>(parameter.weight.value.size()));
      const bool norm = parameter.name.find("norm.weight") != std::string::npos;
      for (size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = static_cast<float>((norm ? 1.0 : 0.0) + 0.25 * random.normal(i));
      upload_numbers(*ops, parameter.weight.value, numbers);
      if (parameter.weight.master && parameter.weight.master.data != parameter.weight.value.data)
        upload_numbers(*ops, parameter.weight.master, numbers);
    }
  }
  static ModelOptions with_precision(ModelOptions options, DType compute) {
    options.frozen_dtype = compute;
    return options;
  }

  std::unique_ptr<Ops> ops;
  Llama llama;
};

inline std::vector<AttentionOptions> all_patterns() {
  return {{.kind = "full"}, {.kind = "fixed"}, {.kind = "s2"}, {.kind = "s2-wrap"}, {.kind = "sf"}};
}

}  // namespace sinklora::test
