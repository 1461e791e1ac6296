// What the forward keeps for the backward, and the scratch of both: one arena, laid out for the longest
// batch.
#pragma once

#include <vector>

#include "kernels/arena.h"
#include "model/recompute.h"
#include "model/weights.h"

namespace sinklora {

// Of one block, for T tokens. A tensor that is not kept is shared by all blocks, and of those that only the
// MLP uses there is one tile of rows (see MlpTile).
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
  Tensor gate_up;               // act [T or tile, 2F]
  Tensor gate_up_u;             // act [T or tile, R]
  Tensor swiglu;                // act [T or tile, F]
  Tensor down_u;                // act [T, R]
  Tensor delta;                 // act [T, H]: a sublayer's output, not yet added; not kept
  KeptTensors kept;
};

// Gradients of activations while the backward passes through a block. d_normed, d_attention and
// BlockActivations::delta are one piece of memory: none is used while another is needed.
struct BackwardScratch {
  Tensor d_x;          // act [T, H]: gradient of the residual stream
  Tensor d_normed;     // act [T, H]
  Tensor d_qkv;        // act [T, (Hq + 2 Hkv) D]
  Tensor d_attention;  // act [T, Hq D]
  Tensor d_swiglu;     // act [tile, F]
};

// The MLP goes through its tokens a tile at a time, so that the widest tensors of a long sequence never exist
// as a whole. Tiles are the same whatever is kept, and so are the bits.
constexpr int64_t kMlpTile = 8192;

class Activations {
 public:
  // `training` false: nothing is kept for a backward, and `recompute` does not matter.
  Activations(const LlamaConfig& config, const Weights& weights, int64_t max_tokens, int64_t max_sequences,
              bool training, const Recompute& recompute, int64_t mlp_tile, DType act, DType stat);
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;

  Arena arena{"activations"}, host{"block inputs in host memory", Arena::Place::host};
  int64_t max_tokens() const { return max_tokens_; }
  int64_t max_sequences() const { return max_sequences_; }
  bool training() const { return training_; }

  // Views for a batch of `tokens` tokens.
  BlockActivations block(int64_t layer, int64_t tokens) const;
  BackwardScratch backward(int64_t tokens) const;
  Tensor final_x(int64_t tokens) const { return final_x_.row_slice(0, tokens); }
  Tensor final_normed(int64_t tokens) const { return final_normed_.row_slice(0, tokens); }
  Tensor final_reciprocal(int64_t tokens) const { return final_reciprocal_.row_slice(0, tokens); }
  Tensor nll(int64_t tokens) const { return nll_.row_slice(0, tokens); }
  // Where the batch itself is uploaded.
  Tensor ids(int64_t tokens) const { return ids_.row_slice(0, tokens); }
  Tensor targets(int64_t tokens) const { return targets_.row_slice(0, tokens); }
  Tensor positions(int64_t tokens) const { return positions_.row_slice(0, tokens); }
  Tensor cache_counts(int64_t sequences) const { return cache_counts_.row_slice(0, sequences); }
  Tensor offsets(int64_t sequences) const { return offsets_.row_slice(0, sequences + 1); }

  // With Recompute::offload, block inputs live in two device buffers in turn; those of all layers but the
  // last two wait in host memory for their backward.
  static constexpr int kSlots = 2;
  static int slot(int64_t layer) { return static_cast<int>(layer % kSlots); }
  bool offloads(int64_t layer) const {
    return training_ && recompute_.offload && layer >= 0 &&
           layer + kSlots < static_cast<int64_t>(blocks_.size());
  }
  void* host_x(int64_t layer) const { return host_x_[static_cast<size_t>(layer)].data; }

 private:
  void take_blocks(const LlamaConfig& config, int64_t mlp_tile, DType act, DType stat);

  int64_t max_tokens_, max_sequences_;
  bool training_;
  Recompute recompute_;
  int64_t num_heads_, hidden_, query_width_;
  const Weights& weights_;                // for each layer's LoRA ranks
  std::vector<BlockActivations> blocks_;  // one per layer, or one for all when nothing is kept
  BlockActivations shared_;               // what is not kept
  std::vector<Tensor> x_slots_, host_x_;
  BackwardScratch backward_;
  Tensor passing_;  // act [T * max(H, Hq D)]: delta, d_normed, d_attention
  Tensor final_x_, final_normed_, final_reciprocal_, nll_, ids_, targets_, positions_, offsets_,
      cache_counts_;
};

}  // namespace sinklora
