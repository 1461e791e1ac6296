// One LLaMA block, forward and backward, as the maths has it.
#pragma once

#include "kernels/ops.h"
#include "model/activations.h"

namespace sinklora {

// What all blocks of a pass share.
struct PassContext {
  const LlamaConfig& config;
  AttentionPattern pattern;
  SequenceView sequences;
  Tensor cosines, sines;  // stat [P, D / 2]
  int64_t mlp_tile;       // tokens that the MLP takes at a time
};

// A layer's cache while n tokens are added to a sequence.
struct CacheStep {
  KvCacheView cache;
  KvRetention keep;
  Tensor new_mass;             // stat [Hkv, n], or empty
  int64_t first_position = 0;  // of the first new token in the sequence
};

// x = previous + previous_delta enters the block (x = previous where the delta is empty); the block's
// attention part is added into a.x_mid, and its MLP part is left in a.delta for the next norm to add.
void block_forward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                   const Tensor& previous, const Tensor& previous_delta);

// The same for the next n tokens of the sequence that the cache remembers. pass.sequences.positions are those
// that RoPE gives them.
void block_extend(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                  const Tensor& previous, const Tensor& previous_delta, const CacheStep& step);

// g.d_x holds the gradient of the block's output and is turned into that of its input; parameter gradients
// are added. Activations that a.kept leaves out are computed again where they are needed. `input_gradient`
// false: nothing in front of the block is trained.
void block_backward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                    const BackwardScratch& g, bool input_gradient);

}  // namespace sinklora
