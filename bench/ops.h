// How fast single operations are, through kernels/ops.h alone: attention in every pattern, and the linears of
// a model's shape.
//
// Inputs are random normal numbers. Calls go round over several copies of everything they touch, as many as
// it takes for 256 MiB (two at least), so that none finds its operands in a cache: the second-level cache of
// an H100 has 50 MiB, of a B200 126. One measurement is as many calls as take some 10 ms, between two
// synchronize(): launching the first and waiting for the last costs tens of microseconds, below half a
// percent. Reported is the median of `repeat` measurements. TFLOP/s count what the result needs
// (kernels/operation_counts.h).
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "model/attention_options.h"

namespace sinklora {

struct AttentionBench {
  std::vector<int64_t> contexts{8192};
  std::vector<std::string> patterns{"full", "fixed", "s2", "s2-wrap", "sf"};
  int64_t batch = 1, heads = 32, kv_heads = 32, head_dim = 128;
  AttentionOptions attention;  // but for its kind
  std::string device = "cuda", precision = "bf16";
  int64_t warmup = 3, repeat = 11;
};

// A list of {"pattern","direction","batch","heads","kv_heads","context","head_dim","sinks","precision","ms",
// "tflops","device"}: for each context and pattern "forward", then "backward" by itself.
Json bench_attention(const AttentionBench& bench);

struct GemmBench {
  std::string shape = "llama2-7b";
  int64_t context = 8192;  // tokens
  int64_t lora_rank = 8;
  std::string device = "cuda", precision = "bf16";
  int64_t warmup = 3, repeat = 11;
};

// A list of {"shape","linear","direction","lora_rank","tokens","in","out","precision","ms","tflops","device"}
// for "qkv", "output", "gate_up" and "down", "forward" and "backward" (of a frozen weight), without adapters
// and with one on every projection; and for "head", LM head with cross-entropy, "forward" and
// "forward+backward" in one.
Json bench_gemm(const GemmBench& bench);

}  // namespace sinklora
