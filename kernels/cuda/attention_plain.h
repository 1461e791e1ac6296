// Attention for any head_dim up to 256 and any alignment, in f32 or bf16: the f32 mode, small models, and
// what fast kernels are compared with. Shapes and formulas are those of Ops::attention_forward and
// Ops::attention_backward.
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops.h"

namespace sinklora::cuda {

void plain_attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const SequenceView& sequences, const AttentionPattern& pattern,
                             int64_t head_dim, cudaStream_t stream);
void plain_attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                              const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                              const Tensor& lse, const SequenceView& sequences,
                              const AttentionPattern& pattern, int64_t head_dim, cudaStream_t stream);

}  // namespace sinklora::cuda
