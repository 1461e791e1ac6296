// How fast a training step is, for model shapes with random weights: nothing is read from disk.
#pragma once

#include <string>

#include "base/json.h"
#include "train/ranks.h"

namespace sinklora {

struct StepBench {
  std::string shape = "llama2-7b";  // llama2-7b, llama3-8b, smollm2-135m
  int64_t context = 8192, batch = 1;
  bool offload = false;
  double memory_limit = 0;  // GiB, for recompute "auto"
  AttentionOptions attention;
  std::string trainable = "lora+", recompute = "none", device = "cuda", precision = "bf16";
  int64_t warmup = 2, steps = 5;
  bool profile = false;
  std::string gpus = "1";   // processes to start on this machine, or "all"
  bool shard_base = false;  // they share the frozen matrices of the layers
};

// Runs forward, backward and update of random tokens as one rank, whose gradients are summed with the others'
// as in training, and returns the median step of the slowest rank and the largest memory of any:
// {"shape","context","attention","recompute","gpus","tokens_per_s","step_ms","peak_mem_gib","mfu","device"}.
// tokens_per_s are those of all ranks together; "gpus" is 0 on the CPU, where "ranks" counts processes.
// mfu counts model_operations() against dense_bf16_peak() (train/utilization.h); null on other precisions and devices
// whose peak is not known.
//
// With `profile`, one more step is run with a stopwatch around every operation (kernels/timed_ops.h):
// "profile": {"step_ms","sum_ms","ops":[{"op","calls","ms","share","tflops","gb_per_s"}]}; a rate is null
// where the shapes do not tell it. profile.step_ms is the watched step's own time; what it and sum_ms are
// above the other "step_ms" is the price of waiting for each operation.
Json bench_step(const StepBench& bench, const RankPlace& place);

}  // namespace sinklora
