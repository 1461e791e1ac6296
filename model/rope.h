// RoPE angle tables, in double until the last rounding.
#pragma once

#include <vector>

#include "model/config.h"

namespace sinklora {

struct RopeTable {
  int64_t positions = 0, half_dim = 0;
  std::vector<double> cosines, sines;  // [positions, half_dim]; yarn's attention factor is in them
};

// inv_i = theta^(-2i/D), i < D/2, stretched as `config.rope` says. `length` matters to `dynamic` alone, whose
// base grows with the longest sequence. Sources: linear, arXiv 2306.15595; yarn, arXiv 2309.00071; llama3 and
// dynamic, transformers' modeling_rope_utils.
std::vector<double> inverse_frequencies(const LlamaConfig& config, int64_t length);
double rope_attention_factor(const LlamaConfig& config);

// Angles of positions 0 .. positions-1.
RopeTable make_rope_table(const LlamaConfig& config, int64_t positions);

}  // namespace sinklora
