// Attention, one warp for each query and head (forward, d_q) or each key and KV head (d_k, d_v); the lanes
// share head_dim. q, out [T, Hq D], k, v [T, Hkv D] in f32 or bf16, lse [Hq, T] in f32; sums in f32. FLOPs
// per visible pair and head: 4 D forward, 14 D backward (scores twice). Keys are read from the caches once
// per query: no tiles, no tensor cores, so the speed is a small part of what the chip can do. Launch: 4 warps
// a block, the heads of a token side by side.
#include "kernels/cuda/attention_plain.h"

#include "kernels/cuda/device.cuh"

namespace sinklora::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostEach = 8;  // elements of a head in a lane: head_dim up to 256

template <class T>
struct Arguments {
  Rows<const T> q, k, v, out, d_out;
  Rows<T> out_written, d_q, d_k, d_v;
  Rows<float> lse;
  const int64_t* offsets;
  int64_t sequences, tokens, heads, kv_heads;
  int head_dim;
  float scale;
  AttentionPattern pattern;
};

// Elements lane, lane + 32, ... of one head of one token.
struct HeadRow {
  float values[kMostEach];
};
template <class T>
__device__ __forceinline__ HeadRow load_head(Rows<const T> from, int64_t token, int64_t head, int head_dim) {
  HeadRow row;
#pragma unroll
  for (int i = 0; i < kMostEach; ++i) {
    const int d = static_cast<int>(threadIdx.x) + i * kWarp;
    row.values[i] = d < head_dim ? to_float(from.data[token * from.stride + head * head_dim + d]) : 0.0f;
  }
  return row;
}
template <class T>
__device__ __forceinline__ void store_head(Rows<T> to, int64_t token, int64_t head, int head_dim,
                                           const HeadRow& row, float factor) {
#pragma unroll
  for (int i = 0; i < kMostEach; ++i) {
    const int d = static_cast<int>(threadIdx.x) + i * kWarp;
    if (d < head_dim)
      to.data[token * to.stride + head * head_dim + d] = from_float<T>(row.values[i] * factor);
  }
}
__device__ __forceinline__ float dot(const HeadRow& a, const HeadRow& b) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kMostEach; ++i) sum += a.values[i] * b.values[i];
  return warp_sum(sum);
}
__device__ __forceinline__ void add(HeadRow& to, float factor, const HeadRow& row) {
#pragma unroll
  for (int i = 0; i < kMostEach; ++i) to.values[i] += factor * row.values[i];
}

// The sequence of a token, by halving.
struct Sequence {
  int64_t begin, length;
};
__device__ Sequence sequence_of(const int64_t* offsets, int64_t count, int64_t token) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] <= token)
      low = middle;
    else
      high = middle;
  }
  return {offsets[low], offsets[low + 1] - offsets[low]};
}

// This warp's token and head, of `heads` side by side.
struct Work {
  int64_t token, head;
};
__device__ __forceinline__ Work own_work(int64_t heads) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  return {item / heads, item % heads};
}

template <class T>
__global__ void forward_kernel(Arguments<T> a) {
  const Work work = own_work(a.heads);
  if (work.token >= a.tokens) return;
  const Sequence sequence = sequence_of(a.offsets, a.sequences, work.token);
  const int64_t kv_head = work.head / (a.heads / a.kv_heads);
  const RangePair keys = key_ranges(a.pattern, work.head, work.token - sequence.begin, sequence.length);
  const HeadRow q = load_head(a.q, work.token, work.head, a.head_dim);
  HeadRow out{};
  float most = -INFINITY, sum = 0;
  for (const Range range : {keys.first, keys.second}) {
    for (int64_t j = sequence.begin + range.begin; j < sequence.begin + range.end; ++j) {
      const float score = dot(q, load_head(a.k, j, kv_head, a.head_dim)) * a.scale;
      const float next = fmaxf(most, score);
      const float before = expf(most - next), own = expf(score - next);
      sum = sum * before + own;
#pragma unroll
      for (float& value : out.values) value *= before;
      add(out, own, load_head(a.v, j, kv_head, a.head_dim));
      most = next;
    }
  }
  store_head(a.out_written, work.token, work.head, a.head_dim, out, 1.0f / sum);
  if (threadIdx.x == 0) a.lse.data[work.head * a.lse.stride + work.token] = most + logf(sum);
}

// ds_ij = p_ij (d_out_i . v_j - d_out_i . out_i);  d_q_i = scale sum_j ds_ij k_j.
template <class T>
__global__ void backward_query_kernel(Arguments<T> a) {
  const Work work = own_work(a.heads);
  if (work.token >= a.tokens) return;
  const Sequence sequence = sequence_of(a.offsets, a.sequences, work.token);
  const int64_t kv_head = work.head / (a.heads / a.kv_heads);
  const RangePair keys = key_ranges(a.pattern, work.head, work.token - sequence.begin, sequence.length);
  const HeadRow q = load_head(a.q, work.token, work.head, a.head_dim);
  const HeadRow d_out = load_head(a.d_out, work.token, work.head, a.head_dim);
  const float delta = dot(d_out, load_head(a.out, work.token, work.head, a.head_dim));
  const float lse = a.lse.data[work.head * a.lse.stride + work.token];
  HeadRow d_q{};
  for (const Range range : {keys.first, keys.second}) {
    for (int64_t j = sequence.begin + range.begin; j < sequence.begin + range.end; ++j) {
      const HeadRow k = load_head(a.k, j, kv_head, a.head_dim);
      const float p = expf(dot(q, k) * a.scale - lse);
      add(d_q, p * (dot(d_out, load_head(a.v, j, kv_head, a.head_dim)) - delta), k);
    }
  }
  store_head(a.d_q, work.token, work.head, a.head_dim, d_q, a.scale);
}

// d_v_j = sum_i p_ij d_out_i;  d_k_j = scale sum_i ds_ij q_i, over the query heads of the KV head in order.
template <class T>
__global__ void backward_key_kernel(Arguments<T> a) {
  const Work work = own_work(a.kv_heads);
  if (work.token >= a.tokens) return;
  const Sequence sequence = sequence_of(a.offsets, a.sequences, work.token);
  const int64_t group = a.heads / a.kv_heads;
  const HeadRow k = load_head(a.k, work.token, work.head, a.head_dim);
  const HeadRow v = load_head(a.v, work.token, work.head, a.head_dim);
  HeadRow d_k{}, d_v{};
  for (int64_t head = work.head * group; head < (work.head + 1) * group; ++head) {
    const RangePair queries = query_ranges(a.pattern, head, work.token - sequence.begin, sequence.length);
    for (const Range range : {queries.first, queries.second}) {
      for (int64_t i = sequence.begin + range.begin; i < sequence.begin + range.end; ++i) {
        const HeadRow q = load_head(a.q, i, head, a.head_dim),
                      d_out = load_head(a.d_out, i, head, a.head_dim);
        const float delta = dot(d_out, load_head(a.out, i, head, a.head_dim));
        const float p = expf(dot(q, k) * a.scale - a.lse.data[head * a.lse.stride + i]);
        add(d_v, p, d_out);
        add(d_k, p * (dot(d_out, v) - delta), q);
      }
    }
  }
  store_head(a.d_k, work.token, work.head, a.head_dim, d_k, a.scale);
  store_head(a.d_v, work.token, work.head, a.head_dim, d_v, 1.0f);
}

template <class T>
Arguments<T> arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse, const SequenceView& sequences, const AttentionPattern& pattern,
                       int64_t head_dim) {
  if (head_dim < 1 || head_dim > int64_t{kMostEach} * kWarp)
    fail_internal("plain attention with head_dim {}; the kernel takes up to {}", head_dim, kMostEach * kWarp);
  Arguments<T> a{};
  a.q = rows_of<const T>(q), a.k = rows_of<const T>(k), a.v = rows_of<const T>(v);
  a.out = rows_of<const T>(out), a.out_written = rows_of<T>(out);
  a.lse = rows_of<float>(lse);
  a.offsets = sequences.offsets.as<int64_t>();
  a.sequences = sequences.count, a.tokens = q.rows();
  a.heads = q.row_size() / head_dim, a.kv_heads = k.row_size() / head_dim;
  a.head_dim = static_cast<int>(head_dim);
  a.scale = static_cast<float>(1.0 / sqrt(static_cast<double>(head_dim)));
  a.pattern = pattern;
  return a;
}

unsigned blocks_of(int64_t items) { return blocks_for((items + kWarps - 1) / kWarps, "heads of tokens"); }

}  // namespace

void plain_attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const SequenceView& sequences, const AttentionPattern& pattern,
                             int64_t head_dim, cudaStream_t stream) {
  if (q.rows() == 0) return;
  with_type(q.dtype, [&]<class T>(T) {
    const Arguments<T> a = arguments<T>(q, k, v, out, lse, sequences, pattern, head_dim);
    forward_kernel<T><<<blocks_of(a.tokens * a.heads), dim3(kWarp, kWarps), 0, stream>>>(a);
  });
  check_launch("attention forward_kernel");
}

void plain_attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                              const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                              const Tensor& lse, const SequenceView& sequences,
                              const AttentionPattern& pattern, int64_t head_dim, cudaStream_t stream) {
  if (q.rows() == 0) return;
  with_type(q.dtype, [&]<class T>(T) {
    Arguments<T> a = arguments<T>(q, k, v, out, lse, sequences, pattern, head_dim);
    a.d_out = rows_of<const T>(d_out);
    a.d_q = rows_of<T>(d_q), a.d_k = rows_of<T>(d_k), a.d_v = rows_of<T>(d_v);
    backward_query_kernel<T><<<blocks_of(a.tokens * a.heads), dim3(kWarp, kWarps), 0, stream>>>(a);
    check_launch("attention backward_query_kernel");
    backward_key_kernel<T><<<blocks_of(a.tokens * a.kv_heads), dim3(kWarp, kWarps), 0, stream>>>(a);
    check_launch("attention backward_key_kernel");
  });
}

}  // namespace sinklora::cuda
