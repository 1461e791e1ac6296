// What the forward keeps for the backward, and the scratch of both: one arena, laid out for the longest
// batch.
#pragma once

#include <string>
#include <vector>

#include "kernels/arena.h"
#include "model/weights.h"

namespace sinklora {

// What is computed again in the backward instead of kept. Each level is bit-equal to the others.
//   none   nothing
//   cheap  norm outputs and the SwiGLU product: memory-bound work
//   block  everything but the block's input
enum class Recompute { none, cheap, block };
Recompute parse_recompute(const std::string& word);
const char* name_of(Recompute recompute);

// Of one block, for T tokens. A tensor that is not kept is shared by all blocks.
struct BlockActivations {
  Tensor x;                     // act [T, H]: the residual stream that enters the block
  Tensor attention_normed;      // act [T, H]
  Tensor attention_reciprocal;  // stat [T]: 1 / rms of x
  Tensor qkv;                   // act [T, (Hq + 2 Hkv) D], q and k after RoPE
  Tensor qkv_u;                 // act [T, R]: x A^T of the adapters; empty without
  Tensor attention;             // act [T, Hq D]
  Tensor lse;                   // stat [Hq, T]
  Tensor output_u;              // act [T, R]
  Tensor x_mid;                 // act [T, H]: the residual stream after attention
  Tensor mlp_normed;            // act [T, H]
  Tensor mlp_reciprocal;        // stat [T]
  Tensor gate_up;               // act [T, 2F]
  Tensor gate_up_u;             // act [T, R]
  Tensor swiglu;                // act [T, F]
  Tensor down_u;                // act [T, R]
};

// Gradients of activations while the backward passes through a block.
struct BackwardScratch {
  Tensor d_x;          // act [T, H]: gradient of the residual stream
  Tensor d_normed;     // act [T, H]
  Tensor d_qkv;        // act [T, (Hq + 2 Hkv) D]
  Tensor d_attention;  // act [T, Hq D]
  Tensor d_gate_up;    // act [T, 2F]
  Tensor d_swiglu;     // act [T, F]
};

class Activations {
 public:
  // `training` false: nothing is kept for a backward, and `recompute` does not matter.
  Activations(const LlamaConfig& config, const Weights& weights, int64_t max_tokens, int64_t max_sequences,
              bool training, Recompute recompute, DType act, DType stat);
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;

  Arena arena{"activations"};
  int64_t max_tokens() const { return max_tokens_; }
  int64_t max_sequences() const { return max_sequences_; }
  bool training() const { return training_; }
  Recompute recompute() const { return recompute_; }

  // Views for a batch of `tokens` tokens.
  BlockActivations block(int64_t layer, int64_t tokens) const;
  BackwardScratch backward(int64_t tokens) const;
  Tensor delta(int64_t tokens) const {
    return delta_.row_slice(0, tokens);
  }  // a sublayer's output, not yet added
  Tensor final_x(int64_t tokens) const { return final_x_.row_slice(0, tokens); }
  Tensor final_normed(int64_t tokens) const { return final_normed_.row_slice(0, tokens); }
  Tensor final_reciprocal(int64_t tokens) const { return final_reciprocal_.row_slice(0, tokens); }
  Tensor nll(int64_t tokens) const { return nll_.row_slice(0, tokens); }
  // Where the batch itself is uploaded.
  Tensor ids(int64_t tokens) const { return ids_.row_slice(0, tokens); }
  Tensor targets(int64_t tokens) const { return targets_.row_slice(0, tokens); }
  Tensor positions(int64_t tokens) const { return positions_.row_slice(0, tokens); }
  Tensor offsets(int64_t sequences) const { return offsets_.row_slice(0, sequences + 1); }

 private:
  int64_t max_tokens_, max_sequences_;
  bool training_;
  Recompute recompute_;
  int64_t num_heads_;
  const Weights& weights_;                // for each layer's LoRA ranks
  std::vector<BlockActivations> blocks_;  // one per layer, or one for all when nothing is kept
  BlockActivations shared_;               // what is not kept
  BackwardScratch backward_;
  Tensor delta_, final_x_, final_normed_, final_reciprocal_, nll_, ids_, targets_, positions_, offsets_;
};

}  // namespace sinklora
