// Attention in f32 on ordinary cores, forward and backward: for comparisons and small runs, not for speed.
//
// Shapes: q, out, d_q, d_out f32 [T, Hq * D]; k, v, d_k, d_v f32 [T, Hkv * D]; lse, delta f32 [Hq, T].
// Work: forward 4 D FLOP a visible pair and query head, backward 14 D (two kernels, each with its own S and dP).
// Launch: 8 warps for 32 rows of one head, 4 rows a warp. The other side's rows pass by in tiles of 32: a lane
// takes one of them for the dot products, then D / 32 columns for the sums. Every sum has one order: no atomics.
#include <cmath>

#include "kernels/cuda/attention_tiles.cuh"

namespace sinklora::cuda {
namespace {

constexpr int rows_per_block = 32, rows_per_warp = 4, plain_threads = 256;

// Shared memory: x, y of the block's own rows, and of the passing rows (padded by one against bank
// conflicts).
template <int D>
struct PlainShared {
  float own_x[rows_per_block][D], own_y[rows_per_block][D];
  float x[32][D + 1], y[32][D + 1];
};

template <int D, int STRIDE>
__device__ void load_rows(float (*to)[STRIDE], Rows<const float> from, int64_t first, int64_t column,
                          int valid) {
  for (int i = threadIdx.x; i < 32 * D; i += plain_threads)
    to[i / D][i % D] = i / D < valid ? from.data[(first + i / D) * from.stride + column + i % D] : 0.0f;
}

template <int D>
__device__ float dot(const float* x, const float* y) {
  float sum = 0;
#pragma unroll 16
  for (int d = 0; d < D; ++d) sum = fmaf(x[d], y[d], sum);
  return sum;
}
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
  return x;
}

// Which rows of which head a block has.
struct PlainWork {
  int64_t start;
  int head, first, length;
  __device__ PlainWork(const AttentionArguments<float>& a, int64_t heads) {
    const int64_t tiles = (a.max_length + rows_per_block - 1) / rows_per_block;
    first = static_cast<int>(blockIdx.x % tiles) * rows_per_block;
    head = static_cast<int>(blockIdx.x / tiles % heads);
    const int64_t sequence = blockIdx.x / tiles / heads;
    start = a.offsets[sequence];
    length = static_cast<int>(a.offsets[sequence + 1] - start);
  }
};

template <int D>
__global__ void __launch_bounds__(plain_threads) f32_forward(AttentionArguments<float> a) {
  extern __shared__ __align__(16) char generic[];
  auto& s = *reinterpret_cast<PlainShared<D>*>(generic);
  const PlainWork w(a, a.num_heads);
  if (w.first >= w.length) return;
  const int lane = threadIdx.x & 31, own = threadIdx.x / 32 * rows_per_warp;
  const int64_t kv_column = w.head / (a.num_heads / a.num_kv_heads) * D;
  load_rows<D>(s.own_x, a.q, w.start + w.first, w.head * D, w.length - w.first);
  const int last = min(w.first + rows_per_block, w.length) - 1;
  const KeyIntervals intervals(a.pattern, w.head, w.first, last, w.length);
  float out[rows_per_warp][D / 32] = {}, most[rows_per_warp], sum[rows_per_warp] = {};
  RowBounds bounds[rows_per_warp];
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) {
    most[r] = -INFINITY;
    bounds[r] = row_bounds(a.pattern, w.head, w.first + own + r, w.length);
  }
  for (int part = 0; part < 2; ++part)
    for (int key = part == 0 ? 0 : intervals.begin; key < (part == 0 ? intervals.low_end : intervals.end);
         key += 32) {
      __syncthreads();
      load_rows<D>(s.x, a.k, w.start + key, kv_column, w.length - key);
      load_rows<D>(s.y, a.v, w.start + key, kv_column, w.length - key);
      __syncthreads();
      const bool in_part = key + lane < (part == 0 ? intervals.low_end : intervals.end);
#pragma unroll
      for (int r = 0; r < rows_per_warp; ++r) {
        const bool seen = in_part && bounds[r].sees(key + lane);
        const float score = seen ? dot<D>(s.own_x[own + r], s.x[lane]) * a.scale : -INFINITY;
        const float top = fmaxf(most[r], warp_max(score));
        if (top == -INFINITY) continue;
        const float factor = expf(most[r] - top), p = expf(score - top);
        most[r] = top;
        sum[r] = sum[r] * factor + p;
#pragma unroll
        for (int c = 0; c < D / 32; ++c) out[r][c] *= factor;
        for (int j = 0; j < 32; ++j) {
          const float weight = __shfl_sync(~0u, p, j);
#pragma unroll
          for (int c = 0; c < D / 32; ++c) out[r][c] = fmaf(weight, s.y[j][c * 32 + lane], out[r][c]);
        }
      }
    }
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) {
    const int64_t row = w.first + own + r;
    if (row >= w.length) continue;
    const float total = warp_sum(sum[r]);
    if (lane == 0) a.lse.data[w.head * a.lse.stride + w.start + row] = most[r] + logf(total);
#pragma unroll
    for (int c = 0; c < D / 32; ++c)
      a.out.data[(w.start + row) * a.out.stride + w.head * D + c * 32 + lane] = out[r][c] / total;
  }
}

// d_q, and delta for the kernel after it.
template <int D>
__global__ void __launch_bounds__(plain_threads) f32_backward_queries(AttentionGradientArguments<float> a) {
  extern __shared__ __align__(16) char generic[];
  auto& s = *reinterpret_cast<PlainShared<D>*>(generic);
  const PlainWork w(a, a.num_heads);
  if (w.first >= w.length) return;
  const int lane = threadIdx.x & 31, own = threadIdx.x / 32 * rows_per_warp;
  const int64_t kv_column = w.head / (a.num_heads / a.num_kv_heads) * D;
  load_rows<D>(s.own_x, a.q, w.start + w.first, w.head * D, w.length - w.first);
  load_rows<D>(s.own_y, a.d_out, w.start + w.first, w.head * D, w.length - w.first);
  const int last = min(w.first + rows_per_block, w.length) - 1;
  const KeyIntervals intervals(a.pattern, w.head, w.first, last, w.length);
  float d_q[rows_per_warp][D / 32] = {}, lse[rows_per_warp], delta[rows_per_warp];
  RowBounds bounds[rows_per_warp];
  __syncthreads();
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) {
    const int64_t row = w.first + own + r, token = w.start + row;
    const bool in_range = row < w.length;
    bounds[r] = row_bounds(a.pattern, w.head, w.first + own + r, w.length);
    lse[r] = in_range ? a.lse.data[w.head * a.lse.stride + token] : 0.0f;
    float part = 0;
#pragma unroll
    for (int c = 0; c < D / 32; ++c)
      if (in_range)
        part +=
            a.out.data[token * a.out.stride + w.head * D + c * 32 + lane] * s.own_y[own + r][c * 32 + lane];
    delta[r] = warp_sum(part);
    if (in_range && lane == 0) a.delta[w.head * a.tokens + token] = delta[r];
  }
  for (int part = 0; part < 2; ++part)
    for (int key = part == 0 ? 0 : intervals.begin; key < (part == 0 ? intervals.low_end : intervals.end);
         key += 32) {
      __syncthreads();
      load_rows<D>(s.x, a.k, w.start + key, kv_column, w.length - key);
      load_rows<D>(s.y, a.v, w.start + key, kv_column, w.length - key);
      __syncthreads();
      const bool in_part = key + lane < (part == 0 ? intervals.low_end : intervals.end);
#pragma unroll
      for (int r = 0; r < rows_per_warp; ++r) {
        float d_s = 0;
        if (in_part && bounds[r].sees(key + lane))
          d_s = expf(dot<D>(s.own_x[own + r], s.x[lane]) * a.scale - lse[r]) *
                (dot<D>(s.own_y[own + r], s.y[lane]) - delta[r]);
        for (int j = 0; j < 32; ++j) {
          const float weight = __shfl_sync(~0u, d_s, j);
#pragma unroll
          for (int c = 0; c < D / 32; ++c) d_q[r][c] = fmaf(weight, s.x[j][c * 32 + lane], d_q[r][c]);
        }
      }
    }
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) {
    const int64_t row = w.first + own + r;
    if (row >= w.length) continue;
#pragma unroll
    for (int c = 0; c < D / 32; ++c)
      a.d_q.data[(w.start + row) * a.d_q.stride + w.head * D + c * 32 + lane] = d_q[r][c] * a.scale;
  }
}

template <int D>
__global__ void __launch_bounds__(plain_threads) f32_backward_keys(AttentionGradientArguments<float> a) {
  extern __shared__ __align__(16) char generic[];
  auto& s = *reinterpret_cast<PlainShared<D>*>(generic);
  const PlainWork w(a, a.num_kv_heads);  // w.head: the KV head
  if (w.first >= w.length) return;
  const int lane = threadIdx.x & 31, own = threadIdx.x / 32 * rows_per_warp;
  const int group = static_cast<int>(a.num_heads / a.num_kv_heads);
  load_rows<D>(s.own_x, a.k, w.start + w.first, w.head * D, w.length - w.first);
  load_rows<D>(s.own_y, a.v, w.start + w.first, w.head * D, w.length - w.first);
  const int last = min(w.first + rows_per_block, w.length) - 1;
  float d_k[rows_per_warp][D / 32] = {}, d_v[rows_per_warp][D / 32] = {};
  for (int head = w.head * group; head < (w.head + 1) * group; ++head) {
    const RangePair of_first = query_ranges(a.pattern, head, w.first, w.length);
    const RangePair of_last = query_ranges(a.pattern, head, last, w.length);
    const int end = static_cast<int>(pattern_detail::most(of_first.second.end, of_last.second.end));
    const int before = min(static_cast<int>(of_last.first.end + 31) / 32 * 32, w.first);
    for (int row = 0; row < end; row += 32) {
      if (row == before) row = w.first;  // both multiples of 32, before <= first
      __syncthreads();
      load_rows<D>(s.x, a.q, w.start + row, head * D, w.length - row);
      load_rows<D>(s.y, a.d_out, w.start + row, head * D, w.length - row);
      __syncthreads();
      const int query = row + lane;
      const bool in_range = query < w.length;
      const RowBounds bounds = row_bounds(a.pattern, head, query, w.length);
      const float lse = in_range ? a.lse.data[head * a.lse.stride + w.start + query] : 0.0f;
      const float delta = in_range ? a.delta[head * a.tokens + w.start + query] : 0.0f;
#pragma unroll
      for (int r = 0; r < rows_per_warp; ++r) {
        float p = 0, d_s = 0;
        if (bounds.sees(w.first + own + r)) {
          p = expf(dot<D>(s.own_x[own + r], s.x[lane]) * a.scale - lse);
          d_s = p * (dot<D>(s.own_y[own + r], s.y[lane]) - delta);
        }
        for (int j = 0; j < 32; ++j) {
          const float of_v = __shfl_sync(~0u, p, j), of_k = __shfl_sync(~0u, d_s, j);
#pragma unroll
          for (int c = 0; c < D / 32; ++c) {
            d_v[r][c] = fmaf(of_v, s.y[j][c * 32 + lane], d_v[r][c]);
            d_k[r][c] = fmaf(of_k, s.x[j][c * 32 + lane], d_k[r][c]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) {
    const int64_t row = w.first + own + r;
    if (row >= w.length) continue;
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      a.d_k.data[(w.start + row) * a.d_k.stride + w.head * D + c * 32 + lane] = d_k[r][c] * a.scale;
      a.d_v.data[(w.start + row) * a.d_v.stride + w.head * D + c * 32 + lane] = d_v[r][c];
    }
  }
}

template <int D, class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& a, int64_t heads, cudaStream_t stream) {
  constexpr int shared = sizeof(PlainShared<D>);
  check_attention(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                  "attention in f32");
  const int64_t tiles = (a.max_length + rows_per_block - 1) / rows_per_block;
  kernel<<<attention_blocks(tiles * heads * a.sequences, "attention in f32"), plain_threads, shared,
           stream>>>(a);
  check_attention(cudaGetLastError(), "attention in f32");
}

template <int D>
void backward(const AttentionGradientArguments<float>& a, cudaStream_t stream) {
  launch<D>(f32_backward_queries<D>, a, a.num_heads, stream);
  launch<D>(f32_backward_keys<D>, a, a.num_kv_heads, stream);
}

}  // namespace

void forward_f32(const AttentionArguments<float>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? launch<64>(f32_forward<64>, a, a.num_heads, stream)
                 : launch<128>(f32_forward<128>, a, a.num_heads, stream);
}
void backward_f32(const AttentionGradientArguments<float>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? backward<64>(a, stream) : backward<128>(a, stream);
}

}  // namespace sinklora::cuda
