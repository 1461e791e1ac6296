// Attention: the checks of the contract, and which kernel runs.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plain.h"
#include "kernels/cuda/cuda_ops.h"

namespace sinklora {
namespace {

void expect_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                      const SequenceView& sequences, const AttentionPattern& pattern, DType activation,
                      int64_t head_dim) {
  const int64_t tokens = q.rows(), width = q.row_size(), kv_width = k.row_size();
  if (head_dim <= 0 || width % head_dim != 0 || kv_width % head_dim != 0 || width % kv_width != 0)
    fail_internal("attention: rows of {} and {} elements do not hold query and KV heads of {}", width,
                  kv_width, head_dim);
  if (pattern.group_size < 0 || pattern.num_sinks < 0)
    fail_internal("attention: groups of {} tokens and {} sinks, wanted no negative number",
                  pattern.group_size, pattern.num_sinks);
  cuda::expect(q, "attention q", activation, tokens, width);
  cuda::expect(k, "attention k", activation, tokens, kv_width);
  cuda::expect(v, "attention v", activation, tokens, kv_width);
  cuda::expect(out, "attention out", activation, tokens, width);
  cuda::expect(lse, "attention lse", DType::f32, width / head_dim, tokens);
  cuda::expect(sequences.offsets, "attention offsets", DType::i64, sequences.count + 1, 1);
}

// The tensor-core kernels read 16 bytes at a time.
bool aligned(std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors)
    if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0 || t.row_stride * size_of(t.dtype) % 16 != 0)
      return false;
  return true;
}

}  // namespace

void CudaOps::attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                const Tensor& v, const SequenceView& sequences,
                                const AttentionPattern& pattern, int64_t head_dim) {
  expect_attention(q, k, v, out, lse, sequences, pattern, activation_, head_dim);
  if (activation_ == DType::bf16 && cuda::attention_supported(activation_, head_dim) &&
      aligned({out, q, k, v}))
    return cuda::attention_forward(out, lse, q, k, v, sequences, pattern, head_dim, stream_);
  cuda::plain_attention_forward(out, lse, q, k, v, sequences, pattern, head_dim, stream_);
}

void CudaOps::attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                                 const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                 const Tensor& lse, const SequenceView& sequences,
                                 const AttentionPattern& pattern, int64_t head_dim) {
  expect_attention(q, k, v, out, lse, sequences, pattern, activation_, head_dim);
  cuda::expect(d_q, "attention d_q", activation_, q.rows(), q.row_size());
  cuda::expect(d_k, "attention d_k", activation_, k.rows(), k.row_size());
  cuda::expect(d_v, "attention d_v", activation_, v.rows(), v.row_size());
  cuda::expect(d_out, "attention d_out", activation_, q.rows(), q.row_size());
  if (activation_ == DType::bf16 && cuda::attention_supported(activation_, head_dim) &&
      aligned({d_q, d_k, d_v, d_out, q, k, v, out})) {
    const cuda::AttentionShape shape{
        activation_, q.rows(), sequences.count, q.row_size() / head_dim, k.row_size() / head_dim, head_dim};
    const int64_t bytes = cuda::attention_backward_workspace(shape, pattern);
    scratch_.reserve(bytes);
    return cuda::attention_backward(d_q, d_k, d_v, d_out, q, k, v, out, lse, sequences, pattern, head_dim,
                                    scratch_.take(bytes), bytes, stream_);
  }
  cuda::plain_attention_backward(d_q, d_k, d_v, d_out, q, k, v, out, lse, sequences, pattern, head_dim,
                                 stream_);
}

}  // namespace sinklora
