// How fast text is generated, for model shapes with random weights: nothing is read from disk.
#pragma once

#include <string>

#include "base/json.h"
#include "infer/cache_policy.h"

namespace sinklora {

struct DecodeBench {
  std::string shape = "llama2-7b";  // llama2-7b, llama3-8b, smollm2-135m
  CacheOptions cache;  // a budget that is a part is one of prompt + warmup + steps + 1 (profile: + 2)
  int64_t prompt = 32768, chunk = 8192;
  int64_t batch = 1;  // sequences side by side; 0: as many as the device's memory holds
  int64_t warmup = 4, steps = 32;
  std::string device = "cuda", precision = "bf16";
  bool profile = false;
};

// Reads a prompt of random tokens, chunk by chunk, gives what was remembered of it to all sequences of the
// batch, and lets each grow by a token a step, logits included:
// {"shape","cache","budget","prompt","batch","tokens_per_s","kv_bytes","peak_mem_gib","device","precision",
// "step_ms","step_bytes","gb_per_s","prefill_ms","prefill_tokens_per_s"}.
// step_ms is the median; tokens_per_s are those of all sequences. kv_bytes: of all caches. step_bytes: what a
// step cannot do without reading once, weights (of the embedding a row) and the keys and values remembered;
// gb_per_s is that over step_ms. With `profile`, one more step with a stopwatch around every operation, as in
// bench_step.
Json bench_decode(const DecodeBench& bench);

}  // namespace sinklora
