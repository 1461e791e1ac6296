// What a block keeps from the forward for its backward, and what is computed again.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace sinklora {

// The tensors of a block that can be computed again, in groups, each from those before it. Of a block's input
// x, the row statistics of the norms and the thin u = x A^T of `down`, nothing is ever dropped.
enum class Kept : uint8_t {
  attention_norm,  // its output: from x
  qkv,             // q, k after RoPE and v: a norm, a GEMM, RoPE
  attention,       // its output and log-sum-exp: attention
  x_mid,           // the residual stream between attention and MLP: a GEMM, an addition
  mlp_norm,        // its output: from x_mid
  gate_up,         // a norm and a GEMM
  swiglu           // the product that enters `down`
};
inline constexpr int kKeptGroups = 7;
const char* name_of(Kept group);

// What one layer keeps.
struct KeptTensors {
  std::array<bool, kKeptGroups> groups{};
  bool operator[](Kept group) const { return groups[static_cast<size_t>(group)]; }
};

// How many layers keep each group (the last ones), and whether the block inputs wait in host memory. Every
// choice gives the same bits of loss and gradients: GEMMs run in the same pieces whatever is kept.
struct Recompute {
  static constexpr int64_t kAllLayers = INT64_MAX;
  std::array<int64_t, kKeptGroups> layers{};
  bool offload = false;

  static Recompute none();   // keeps all
  static Recompute cheap();  // drops norm outputs and the SwiGLU product: memory-bound work
  static Recompute block();  // keeps nothing but the block's input
  int64_t& operator[](Kept group) { return layers[static_cast<size_t>(group)]; }
  KeptTensors at(int64_t layer, int64_t num_layers) const;
};

// none, cheap or block.
Recompute parse_recompute(const std::string& word);
// "keeps qkv, attention; x_mid in 12 of 32 layers; block inputs in host memory".
std::string describe(const Recompute& recompute, int64_t num_layers);

}  // namespace sinklora
