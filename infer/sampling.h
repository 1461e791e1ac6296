// Which token comes next: transformers' logits processors, in its order, and a draw.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"

namespace sinklora {

struct SamplingOptions {
  double temperature = 0;         // 0: greedy, the likeliest token (the lowest id among equals)
  int64_t top_k = 0;              // keep the k likeliest and what equals the last of them; 0: all
  double top_p = 1;               // keep the fewest likeliest tokens whose mass reaches p; 1: all
  double repetition_penalty = 1;  // tokens seen before: logits > 0 divided by it, others multiplied
  uint64_t seed = 0;
};

// The draws depend on the seed and on how many were made, so that equal logits give equal text.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);  // throws Error(usage) on values out of range

  // Tokens of the text, to which the repetition penalty applies from now on.
  void see(std::span<const int32_t> ids);
  // Chooses the token after these logits [V]; it counts as seen.
  int32_t next(std::span<const float> logits);
  // With which probability next() chooses each token: [V], penalty, temperature, top-k and top-p applied.
  std::vector<double> probabilities(std::span<const float> logits) const;
  // Forgets what was seen and begins the draws anew.
  void reset();

 private:
  std::vector<double> penalized(std::span<const float> logits) const;
  void keep_top_k(std::vector<double>& logits) const;
  void keep_top_p(std::vector<double>& weights) const;

  SamplingOptions options_;
  RandomStream random_;
  uint64_t draws_ = 0;
  std::vector<bool> seen_;  // by id
};

}  // namespace sinklora
