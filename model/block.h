// One LLaMA block, forward and backward, as the maths has it.
#pragma once

#include <span>

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
  Tensor counts{};        // decoding: see Ops::decode_attention
};

// The rows of a pass that are the next tokens of one sequence, and its cache in one layer.
struct CacheStep {
  KvStep kv;  // new_mass: stat [Hkv, rows], or empty
  int64_t first_row = 0, rows = 0;
};

// x = previous + previous_delta enters the block (x = previous where the delta is empty); the block's
// attention part is added into a.x_mid, and its MLP part is left in a.delta for the next norm to add.
void block_forward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                   const Tensor& previous, const Tensor& previous_delta);

// The same for the next tokens of sequences that caches remember, T of them altogether.
// pass.sequences.positions are those that RoPE gives them; either all caches have ranks or none. With
// pass.counts, each has one.
void block_extend(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                  const Tensor& previous, const Tensor& previous_delta, std::span<const CacheStep> steps);

// g.d_x holds the gradient of the block's output and is turned into that of its input; parameter gradients
// are added. Activations that a.kept leaves out are computed again where they are needed. `input_gradient`
// false: nothing in front of the block is trained.
void block_backward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                    const BackwardScratch& g, bool input_gradient);

}  // namespace sinklora
