#include "model/shapes.h"

#include "base/error.h"

namespace sinklora {

const std::vector<std::string>& shape_names() {
  static const std::vector<std::string> names{"llama2-7b", "llama3-8b", "smollm2-135m"};
  return names;
}

LlamaConfig shape_named(const std::string& name) {
  LlamaConfig c;  // LLaMA-2-7B as it is
  if (name == "llama2-7b") return c;
  if (name == "llama3-8b") {
    c.vocab_size = 128256, c.intermediate_size = 14336, c.num_kv_heads = 8, c.rope_theta = 500000;
    return c;
  }
  if (name == "smollm2-135m") {
    c.vocab_size = 49152, c.hidden_size = 576, c.intermediate_size = 1536, c.num_layers = 30;
    c.num_heads = 9, c.num_kv_heads = 3, c.head_dim = 64, c.rope_theta = 1e5, c.tied_embeddings = true;
    return c;
  }
  fail_usage("--shape {}: choose {}", name, fmt::join(shape_names(), ", "));
}

}  // namespace sinklora
