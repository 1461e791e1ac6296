// A model directory small enough to train in milliseconds.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/json.h"
#include "model/safetensors.h"

namespace sinklora::test {

inline constexpr int64_t kContext = 24, kVocab = 67;

// It holds only a config: for --init random.
inline void write_toy_config(const std::filesystem::path& model) {
  std::filesystem::create_directory(model);
  const Json config{{"architectures", {"LlamaForCausalLM"}},
                    {"model_type", "llama"},
                    {"vocab_size", kVocab},
                    {"hidden_size", 32},
                    {"intermediate_size", 48},
                    {"num_hidden_layers", 2},
                    {"num_attention_heads", 4},
                    {"num_key_value_heads", 2},
                    {"max_position_embeddings", kContext},
                    {"rms_norm_eps", 1e-6},
                    {"hidden_act", "silu"},
                    {"torch_dtype", "float32"}};
  std::ofstream(model / "config.json") << config.dump();
}

// Makes every loss of a saved model NaN.
inline void poison(const std::filesystem::path& model) {
  const SafetensorsFile file(model / "model.safetensors");
  const TensorInfo& norm = *file.find("model.norm.weight");
  const std::vector<float> numbers(static_cast<size_t>(norm.elements()), NAN);
  std::fstream raw(model / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  raw.seekp(norm.offset);
  raw.write(reinterpret_cast<const char*>(numbers.data()), static_cast<std::streamsize>(numbers.size() * 4));
}

}  // namespace sinklora::test
