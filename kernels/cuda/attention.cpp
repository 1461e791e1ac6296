// Entry points of the GPU attention: they check, lay out scratch, and choose the kernel.
#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/attention_plain.h"

namespace sinklora::cuda {

void check_attention(cudaError_t status, const char* kernel) {
  if (status != cudaSuccess) fail_internal("CUDA: {}: {}", kernel, cudaGetErrorString(status));
}
unsigned attention_blocks(int64_t count, const char* kernel) {
  if (count > std::numeric_limits<int32_t>::max())
    fail_internal("{}: {} blocks are more than one launch holds; use a smaller batch", kernel, count);
  return static_cast<unsigned>(count);
}

namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Where scratch lies. With `base` null only its size counts.
struct Workspace {
  float *delta, *d_q_sum, *key_sum, *sink_parts, *sink_base;
  uint16_t* sink_d_s;
  int* turn;
  int64_t turn_bytes, tile_slots, key_slots, chunk, sink_columns, bytes = 0;

  Workspace(void* base, const AttentionShape& shape, const AttentionPattern& pattern, AttentionKernel kernel)
      : base_(static_cast<char*>(base)) {
    // Only Hopper's kernel adds across blocks; mma needs delta alone, plain nothing.
    const bool adds = kernel == AttentionKernel::wgmma;
    const int64_t sinks = adds ? pattern.num_sinks : 0;
    tile_slots = adds ? slot_base(shape.tokens, shape.sequences, query_tile) : 0;
    const bool shared = shape.num_heads > shape.num_kv_heads;
    key_slots = adds && shared ? slot_base(shape.tokens, shape.sequences, key_tile) : 0;
    // Long enough that the parts stay small, short enough that there are blocks for every multiprocessor.
    chunk = round_up(std::max<int64_t>(512, shape.tokens / 16), query_tile * 2);
    const int64_t chunk_slots = sinks > 0 ? slot_base(shape.tokens, shape.sequences, chunk) : 0;
    delta = take<float>(shape.num_heads * shape.tokens);
    d_q_sum = take<float>(shape.num_heads * tile_slots * query_tile * shape.head_dim);
    key_sum = take<float>(shape.num_kv_heads * key_slots * 2 * key_tile * shape.head_dim);
    const int64_t turns = 1 + shape.num_heads * tile_slots + shape.num_kv_heads * key_slots;
    turn_bytes = turns * size_of(DType::i32);
    turn = take<int>(turns);
    sink_columns = sinks <= 16 ? round_up(sinks, 16) : round_up(sinks, 64);
    sink_d_s = take<uint16_t>(shape.num_heads * tile_slots * query_tile * sink_columns);
    sink_parts = take<float>(chunk_slots * shape.num_heads * sink_columns * 2 * shape.head_dim);
    sink_base = take<float>(shape.sequences * shape.num_kv_heads * sinks * 2 * shape.head_dim);
  }

 private:
  template <class T>
  T* take(int64_t count) {
    T* const at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes);
    bytes += round_up(count * static_cast<int64_t>(sizeof(T)), 256);
    return at;
  }
  char* base_;
};

int device_capability() {  // 90: compute capability 9.0
  int device = 0, major = 0, minor = 0;
  check_attention(cudaGetDevice(&device), "attention");
  check_attention(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "attention");
  check_attention(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "attention");
  return major * 10 + minor;
}

// The kernel that runs, where one was not asked for.
AttentionKernel chosen(AttentionKernel kernel, DType dtype) {
  if (kernel != AttentionKernel::automatic) return kernel;
  if (dtype == DType::f32) return AttentionKernel::plain;
  return device_capability() == 90 ? AttentionKernel::wgmma : AttentionKernel::mma;
}

void check_supported(DType dtype, int64_t head_dim, AttentionKernel kernel) {
  if (attention_supported(dtype, head_dim, kernel)) return;
  if (head_dim != 64 && head_dim != 128)
    fail_input("attention on the GPU: head_dim {} is not supported; 64 and 128 are", head_dim);
  if (dtype != DType::bf16 && dtype != DType::f32)
    fail_input("attention on the GPU: {} is not supported; bf16 and f32 are", name_of(dtype));
  const int capability = device_capability();
  fail_input("attention on the GPU: {} needs compute capability {}, this device has {}.{}",
             kernel == AttentionKernel::wgmma ? "this kernel" : "bf16",
             kernel == AttentionKernel::wgmma ? "9.0 (H100, H200)" : "8.0 or later", capability / 10,
             capability % 10);
}

// Sinks beyond one group, or without groups at all, change nothing: every query sees them in its own run.
AttentionPattern without_idle_sinks(AttentionPattern pattern) {
  if (pattern.group_size == 0) pattern.num_sinks = 0;
  return pattern;
}

AttentionShape shape_of(const Tensor& q, const Tensor& k, const SequenceView& sequences, int64_t head_dim) {
  return {.dtype = q.dtype,
          .tokens = q.rows(),
          .sequences = sequences.count,
          .num_heads = q.row_size() / head_dim,
          .num_kv_heads = k.row_size() / head_dim,
          .head_dim = head_dim};
}

template <class T>
Rows<T> rows_of(const Tensor& tensor, const AttentionShape& shape, int64_t columns) {
  if (tensor.dtype != shape.dtype || tensor.rows() != shape.tokens || tensor.row_size() != columns)
    fail_internal("attention: {} where {} [{}, {}] is wanted", describe(tensor), name_of(shape.dtype),
                  shape.tokens, columns);
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0 ||
      tensor.row_stride * size_of(tensor.dtype) % 16 != 0)
    fail_internal("attention: rows of {} do not begin at multiples of 16 bytes", describe(tensor));
  return {static_cast<T*>(tensor.data), tensor.row_stride};
}

template <class T>
void set_arguments(AttentionArguments<T>& a, const Tensor& out, const Tensor& lse, const Tensor& q,
                   const Tensor& k, const Tensor& v, const SequenceView& sequences,
                   const AttentionPattern& pattern, const AttentionShape& shape) {
  const int64_t columns = shape.num_heads * shape.head_dim, kv_columns = shape.num_kv_heads * shape.head_dim;
  if (shape.num_kv_heads == 0 || shape.num_heads % shape.num_kv_heads != 0)
    fail_internal("attention: {} query heads for {} key/value heads", shape.num_heads, shape.num_kv_heads);
  if (sequences.max_length > std::numeric_limits<int32_t>::max() - 1024)
    fail_input("attention on the GPU: a sequence of {} tokens is too long", sequences.max_length);
  a.q = rows_of<const T>(q, shape, columns);
  a.k = rows_of<const T>(k, shape, kv_columns);
  a.v = rows_of<const T>(v, shape, kv_columns);
  a.out = rows_of<T>(out, shape, columns);
  if (lse.dtype != DType::f32 || lse.rows() != shape.num_heads || lse.row_size() != shape.tokens)
    fail_internal("attention: {} where the log-sum-exp f32 [{}, {}] is wanted", describe(lse),
                  shape.num_heads, shape.tokens);
  a.lse = {static_cast<float*>(lse.data), lse.row_stride};
  a.offsets = static_cast<const int64_t*>(sequences.offsets.data);
  a.tokens = shape.tokens;
  a.sequences = sequences.count;
  a.max_length = sequences.max_length;
  a.num_heads = shape.num_heads;
  a.num_kv_heads = shape.num_kv_heads;
  a.pattern = without_idle_sinks(pattern);
  a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
}

// Query heads whose blocks run side by side: 12, so that an H100's 132 SMs have 11 key tiles of each, which
// wait for one another at the start (fewer heads wait longer; more, and little of what they share is in the L2
// cache at a time), but fewer where the queries, dO and sums of dQ of 12 runs are far more than the cache holds.
int64_t heads_at_once(const AttentionShape& shape, const AttentionPattern& pattern, int64_t max_length) {
  constexpr int64_t most = 12, bytes_at_once = 96 << 20;
  const int64_t run = pattern.group_size == 0 ? max_length : std::min(pattern.group_size, max_length);
  const int64_t bytes = run * shape.head_dim * 8;
  return std::clamp<int64_t>(bytes_at_once / std::max<int64_t>(bytes, 1), 1, std::min(most, shape.num_heads));
}

template <class T>
void set_gradient_arguments(AttentionGradientArguments<T>& a, const Tensor& d_q, const Tensor& d_k,
                            const Tensor& d_v, const Tensor& d_out, const AttentionShape& shape,
                            void* workspace, int64_t workspace_bytes, cudaStream_t stream,
                            AttentionKernel kernel) {
  const Workspace w(workspace, shape, a.pattern, kernel);
  if (w.bytes > workspace_bytes)
    fail_internal("attention backward: a workspace of {} bytes where {} are needed", workspace_bytes,
                  w.bytes);
  const int64_t columns = shape.num_heads * shape.head_dim, kv_columns = shape.num_kv_heads * shape.head_dim;
  a.d_out = rows_of<const T>(d_out, shape, columns);
  a.d_q = rows_of<T>(d_q, shape, columns);
  a.d_k = rows_of<T>(d_k, shape, kv_columns);
  a.d_v = rows_of<T>(d_v, shape, kv_columns);
  a.delta = w.delta;
  a.d_q_sum = w.d_q_sum;
  a.ticket = w.turn;
  a.turn = w.turn + 1;
  a.key_turn = a.turn + shape.num_heads * w.tile_slots;
  a.key_sum = w.key_sum;
  a.sink_d_s = w.sink_d_s;
  a.sink_columns = w.sink_columns;
  a.sink_parts = w.sink_parts;
  a.sink_base = w.sink_base;
  a.tile_slots = w.tile_slots;
  a.key_slots = w.key_slots;
  a.chunk = w.chunk;
  a.heads_at_once = heads_at_once(shape, a.pattern, a.max_length);
  check_attention(cudaMemsetAsync(w.turn, 0, static_cast<size_t>(w.turn_bytes), stream),
                  "attention backward");
}

}  // namespace

bool attention_supported(DType dtype, int64_t head_dim, AttentionKernel kernel) {
  if (head_dim != 64 && head_dim != 128) return false;
  if (dtype == DType::f32) return chosen(kernel, dtype) == AttentionKernel::plain;
  if (dtype != DType::bf16) return false;
  switch (chosen(kernel, dtype)) {
    case AttentionKernel::wgmma:
      return device_capability() == 90;
    case AttentionKernel::mma:
      return device_capability() >= 80;
    default:
      return true;
  }
}

void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                       const Tensor& v, const SequenceView& sequences, const AttentionPattern& pattern,
                       int64_t head_dim, cudaStream_t stream, AttentionKernel kernel, int64_t first_query) {
  check_supported(q.dtype, head_dim, kernel);
  const AttentionShape shape = shape_of(q, k, sequences, head_dim);
  if (shape.tokens == 0 || sequences.count == 0) return;
  kernel = chosen(kernel, shape.dtype);
  if (kernel == AttentionKernel::plain)
    return plain_attention_forward(out, lse, q, k, v, sequences, pattern, head_dim, stream);
  AttentionArguments<uint16_t> a;
  set_arguments(a, out, lse, q, k, v, sequences, pattern, shape);
  if (first_query > 0 && sequences.count > 1)
    fail_internal("attention: queries from {} on of {} sequences, wanted one", first_query, sequences.count);
  a.first_query = first_query;
  kernel == AttentionKernel::wgmma ? forward_tensor_core(a, head_dim, stream)
                                   : forward_mma(a, head_dim, stream);
}

int64_t attention_backward_workspace(const AttentionShape& shape, const AttentionPattern& pattern,
                                     AttentionKernel kernel) {
  return Workspace(nullptr, shape, without_idle_sinks(pattern), chosen(kernel, shape.dtype)).bytes;
}

void attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                        const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                        const Tensor& lse, const SequenceView& sequences, const AttentionPattern& pattern,
                        int64_t head_dim, void* workspace, int64_t workspace_bytes, cudaStream_t stream,
                        AttentionKernel kernel) {
  check_supported(q.dtype, head_dim, kernel);
  const AttentionShape shape = shape_of(q, k, sequences, head_dim);
  if (shape.tokens == 0 || sequences.count == 0) return;
  kernel = chosen(kernel, shape.dtype);
  if (kernel == AttentionKernel::plain)
    return plain_attention_backward(d_q, d_k, d_v, d_out, q, k, v, out, lse, sequences, pattern, head_dim,
                                    stream);
  AttentionGradientArguments<uint16_t> a;
  set_arguments(a, out, lse, q, k, v, sequences, pattern, shape);
  set_gradient_arguments(a, d_q, d_k, d_v, d_out, shape, workspace, workspace_bytes, stream, kernel);
  if (kernel == AttentionKernel::mma) {
    backward_delta(a, head_dim, stream);
    return backward_mma(a, head_dim, stream);
  }
  backward_sinks(a, head_dim, stream);
  backward_tensor_core(a, head_dim, stream);
  backward_finish_sinks(a, head_dim, stream);
}

}  // namespace sinklora::cuda
