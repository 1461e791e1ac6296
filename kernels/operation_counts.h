// Multiplications and additions that a result needs, whatever a kernel does for it: what TFLOP/s and MFU are
// counted from.
#pragma once

#include "kernels/ops.h"

namespace sinklora {

// Pairs (query, key) of one sequence that see each other, over all heads.
int64_t visible_pairs(const AttentionPattern& pattern, int64_t num_heads, int64_t length);

// 2 for a score and 2 for its share of the output, for each pair and element of head_dim; the backward has
// five products where the forward has two.
inline double attention_forward_operations(double pairs, int64_t head_dim) {
  return 4.0 * static_cast<double>(head_dim) * pairs;
}
inline double attention_backward_operations(double pairs, int64_t head_dim) {
  return 10.0 * static_cast<double>(head_dim) * pairs;
}

double linear_forward_operations(int64_t tokens, const Linear& linear);
// Of d_x when it is wanted, of the adapters' gradients, and of dW when `gradient` asks for it.
double linear_backward_operations(int64_t tokens, const Linear& linear, const LinearGradient& gradient,
                                  bool input_gradient);
// Logits, and two more such products for d_hidden and d_weight. `weight`: [V, H].
inline double head_operations(int64_t tokens, const Tensor& weight, bool d_hidden, bool d_weight) {
  return 2.0 * static_cast<double>(tokens) * static_cast<double>(weight.size()) * (1 + d_hidden + d_weight);
}

}  // namespace sinklora
