// Text generation, one token at a time.
#pragma once

#include <functional>
#include <vector>

#include "model/llama.h"

namespace sinklora {

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  double temperature = 0;  // 0: the likeliest token (the lowest id among equals)
  uint64_t seed = 0;
  std::vector<int32_t> stop_ids;
};

// Continues `prompt` with full attention; `on_token` sees each new token as it comes. Ends at a stop id, at
// max_new_tokens, or when the model's context is full. Every token is a pass over the whole text.
std::vector<int32_t> generate(Llama& model, std::vector<int32_t> prompt, int64_t context,
                              const GenerateOptions& options, const std::function<void(int32_t)>& on_token);

}  // namespace sinklora
