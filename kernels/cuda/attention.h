// Attention on the GPU: what CudaOps calls. The formulas, shapes and dtypes are those of
// Ops::attention_forward and Ops::attention_backward (kernels/ops.h). bf16 runs on tensor cores, with
// kernels of its own for Hopper (sm_90a) and one for sm_80 and later; f32 is a plain kernel for comparisons.
// head_dim is 64 or 128. Any tensor but lse may be a column slice of a wider buffer; rows and columns begin
// at multiples of 16 bytes. Nothing here waits, allocates, or reads device memory from the host.
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops.h"

namespace sinklora::cuda {

// automatic: wgmma on compute capability 9.0, mma from 8.0 on, plain for f32. The others are for tests and
// timings.
enum class AttentionKernel { automatic, wgmma, mma, plain };

// Whether the functions below take this dtype and head_dim on the current device; they refuse others by name.
bool attention_supported(DType dtype, int64_t head_dim, AttentionKernel kernel = AttentionKernel::automatic);

// Queries before `first_query` (0 where there are several sequences) may be left out: those of its tile of
// 128 queries and of later ones are read and written.
void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                       const Tensor& v, const SequenceView& sequences, const AttentionPattern& pattern,
                       int64_t head_dim, cudaStream_t stream,
                       AttentionKernel kernel = AttentionKernel::automatic, int64_t first_query = 0);

struct AttentionShape {
  DType dtype = DType::bf16;
  int64_t tokens = 0;  // T, of all sequences
  int64_t sequences = 1;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
};
// Scratch of one backward call, for any sequences that add up to shape.tokens.
int64_t attention_backward_workspace(const AttentionShape& shape, const AttentionPattern& pattern,
                                     AttentionKernel kernel = AttentionKernel::automatic);

// `workspace`: attention_backward_workspace() bytes, aligned to 256; its content does not matter.
void attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                        const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                        const Tensor& lse, const SequenceView& sequences, const AttentionPattern& pattern,
                        int64_t head_dim, void* workspace, int64_t workspace_bytes, cudaStream_t stream,
                        AttentionKernel kernel = AttentionKernel::automatic);

}  // namespace sinklora::cuda
