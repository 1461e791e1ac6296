// RMSNorm with the residual sum in front of it, its rebuilding and its backward.
//   forward   sum = x + delta;  r = 1 / sqrt(mean(sum^2) + epsilon);  normed = gain * sum * r
//   backward  d_x += r (g - x r^2 mean(g x)),  g = gain * d_normed;   d_gain += sum over t of d_normed * x *
//   r
// x, delta, sum, normed, d_x, d_normed [T, H] in bf16 or f32; r [T] and d_gain [H] in f32; gain [H] in bf16
// or f32. Moves 4 T H elements forward (2 without delta), 2 to rebuild, 4 backward; about 4 and 10 FLOPs an
// element. Launch: a block per token forward. Backward a block walks over a run of tokens and keeps its part
// of d_gain in registers; the parts are added in the order of the runs by a second kernel. A thread holds up
// to four packs of the row, so that a row is read once.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kPacks = 4;           // of a row in the registers of a thread
constexpr int kMostThreads = 512;   // leaves 128 registers to each
constexpr int64_t kMostRuns = 528;  // blocks of the backward: four for each multiprocessor of an H100
constexpr int64_t kLeastRun = 4;    // tokens

template <class T>
struct Rows {
  T* data;
  int64_t stride;
  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};
template <class T>
Rows<T> rows_of(const Tensor& t) {
  return {t.as<T>(), t.row_stride};
}

struct Gain {
  const void* data;
  bool is_bf16;
};
Gain gain_of(const Tensor& t) { return {t.data, t.dtype == DType::bf16}; }

// Where pack p of this thread begins. A row is short: its columns are counted in 32 bits, rows in 64.
template <int N>
__device__ __forceinline__ int column(int p) {
  return (p * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * N;
}

// normed = gain * x * r for the packs of this thread.
template <class T, int N>
__device__ __forceinline__ void write_normed(T* normed, const Pack<T, N> (&row)[kPacks], Gain gain, float r,
                                             int hidden) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int c = column<N>(p);
    if (c >= hidden) break;
    float gains[N];
    load_floats<N>(gains, gain.data, gain.is_bf16, c);
    Pack<T, N> result;
    for (int i = 0; i < N; ++i) result.values[i] = from_float<T>(gains[i] * (to_float(row[p].values[i]) * r));
    store<N>(normed + c, result);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kMostThreads)
    rmsnorm_kernel(Rows<T> sum, Rows<T> normed, float* reciprocal, Rows<const T> x, Rows<const T> delta,
                   Gain gain, float epsilon, int hidden) {
  __shared__ float partial[kMostThreads / kWarp];
  const int64_t token = blockIdx.x;
  Pack<T, N> row[kPacks], added[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int c = column<N>(p);
    if (c >= hidden) break;
    row[p] = load<N>(x[token] + c);
    if (delta.data) added[p] = load<N>(delta[token] + c);
  }
  float squares = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int c = column<N>(p);
    if (c >= hidden) break;
    if (delta.data) {
      for (int i = 0; i < N; ++i)
        row[p].values[i] = from_float<T>(to_float(row[p].values[i]) + to_float(added[p].values[i]));
      store<N>(sum[token] + c, row[p]);
    }
    for (int i = 0; i < N; ++i) squares += to_float(row[p].values[i]) * to_float(row[p].values[i]);
  }
  const float r = 1.0f / sqrtf(block_sum(squares, partial) / static_cast<float>(hidden) + epsilon);
  if (threadIdx.x == 0) reciprocal[token] = r;
  write_normed<T, N>(normed[token], row, gain, r, hidden);
}

template <class T, int N>
__global__ void __launch_bounds__(kMostThreads)
    rmsnorm_rebuild_kernel(Rows<T> normed, Rows<const T> x, const float* reciprocal, Gain gain, int hidden) {
  const int64_t token = blockIdx.x;
  Pack<T, N> row[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int c = column<N>(p);
    if (c < hidden) row[p] = load<N>(x[token] + c);
  }
  write_normed<T, N>(normed[token], row, gain, reciprocal[token], hidden);
}

__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// d_gain_parts: [runs, H] or nowhere.
template <class T, int N>
__global__ void __launch_bounds__(kMostThreads)
    rmsnorm_backward_kernel(Rows<T> d_x, float* d_gain_parts, Rows<const T> d_normed, Rows<const T> x,
                            const float* reciprocal, Gain gain, int hidden, int64_t tokens, int64_t run) {
  __shared__ float partial[kMostThreads / kWarp];
  float d_gain[kPacks][N] = {};
  const int64_t begin = blockIdx.x * run, end = begin + run < tokens ? begin + run : tokens;
  for (int64_t token = begin; token < end; ++token) {
    Pack<T, N> dy[kPacks], in[kPacks], dx[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int c = column<N>(p);
      if (c >= hidden) break;
      dy[p] = load<N>(d_normed[token] + c);
      in[p] = load<N>(x[token] + c);
      dx[p] = load<N>(d_x[token] + c);
    }
    if (token + 1 < end) {  // the next rows travel to the L2 cache while this one is worked on
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int c = column<N>(p);
        if (c >= hidden) break;
        prefetch(d_normed[token + 1] + c);
        prefetch(x[token + 1] + c);
        prefetch(d_x[token + 1] + c);
      }
    }
    const float r = reciprocal[token];
    float dot = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int c = column<N>(p);
      if (c >= hidden) break;
      float gains[N];
      load_floats<N>(gains, gain.data, gain.is_bf16, c);
      for (int i = 0; i < N; ++i) {
        const float d = to_float(dy[p].values[i]), value = to_float(in[p].values[i]);
        dot += gains[i] * d * value;
        d_gain[p][i] += d * (value * r);
      }
    }
    const float along = block_sum(dot, partial) / static_cast<float>(hidden) * r * r;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int c = column<N>(p);
      if (c >= hidden) break;
      float gains[N];
      load_floats<N>(gains, gain.data, gain.is_bf16, c);
      for (int i = 0; i < N; ++i)
        dx[p].values[i] =
            from_float<T>(to_float(dx[p].values[i]) +
                          r * (gains[i] * to_float(dy[p].values[i]) - to_float(in[p].values[i]) * along));
      store<N>(d_x[token] + c, dx[p]);
    }
  }
  if (!d_gain_parts) return;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int c = column<N>(p);
    if (c >= hidden) break;
    for (int i = 0; i < N; ++i)
      d_gain_parts[static_cast<int64_t>(blockIdx.x) * hidden + c + i] = d_gain[p][i];
  }
}

// to[c] += sum over rows of parts[row, c], in order. A warp's threads take neighbouring columns, the block's
// warps take rows in turn.
__global__ void add_parts_kernel(float* to, const float* parts, int64_t rows, int64_t columns) {
  __shared__ float sums[kWarp][kWarp + 1];
  const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0;
  if (c < columns)
    for (int64_t row = warp; row < rows; row += kWarp) sum += parts[row * columns + c];
  sums[warp][lane] = sum;
  __syncthreads();
  const float total = warp_sum(sums[lane][warp]);  // of column `warp` of this block
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarp + warp;
  if (lane == 0 && own < columns) to[own] += total;
}

// The threads that hold a row of `hidden` elements in packs of N.
template <int N>
unsigned row_threads(int64_t hidden) {
  const int64_t packs = (hidden + N - 1) / N, threads = (packs + kPacks - 1) / kPacks;
  if (threads > kMostThreads)
    fail_internal("rmsnorm: rows of {} elements; the kernel holds up to {} of this alignment", hidden,
                  int64_t{kMostThreads} * kPacks * N);
  return static_cast<unsigned>((threads + kWarp - 1) / kWarp * kWarp);
}

}  // namespace
}  // namespace cuda

void CudaOps::residual_rmsnorm_forward(const Tensor& sum, const Tensor& normed, const Tensor& reciprocal,
                                       const Tensor& x, const Tensor& delta, const Tensor& gain,
                                       double epsilon) {
  const int64_t tokens = x.rows(), hidden = x.row_size();
  cuda::expect(x, "rmsnorm x", activation_, tokens, hidden);
  cuda::expect(normed, "rmsnorm normed", activation_, tokens, hidden);
  cuda::expect(reciprocal, "rmsnorm reciprocal", DType::f32, tokens, 1);
  cuda::expect_weight(gain, "rmsnorm gain", hidden, 1);
  if (delta) {
    cuda::expect(delta, "rmsnorm delta", activation_, tokens, hidden);
    cuda::expect(sum, "rmsnorm sum", activation_, tokens, hidden);
  }
  if (x.size() == 0) return;
  const bool packed = cuda::packable(x) && cuda::packable(normed) && cuda::packable(delta) &&
                      (!delta || cuda::packable(sum)) && cuda::aligned(gain);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
      cuda::rmsnorm_kernel<T, N>
          <<<cuda::blocks_for(tokens, "tokens"), cuda::row_threads<N>(hidden), 0, stream_>>>(
              cuda::rows_of<T>(sum), cuda::rows_of<T>(normed), reciprocal.as<float>(),
              cuda::rows_of<const T>(x), cuda::rows_of<const T>(delta), cuda::gain_of(gain),
              static_cast<float>(epsilon), static_cast<int>(hidden));
    });
  });
  cuda::check_launch("rmsnorm_kernel");
}

void CudaOps::rmsnorm_rebuild(const Tensor& normed, const Tensor& x, const Tensor& reciprocal,
                              const Tensor& gain) {
  const int64_t tokens = x.rows(), hidden = x.row_size();
  cuda::expect(x, "rmsnorm x", activation_, tokens, hidden);
  cuda::expect(normed, "rmsnorm normed", activation_, tokens, hidden);
  cuda::expect(reciprocal, "rmsnorm reciprocal", DType::f32, tokens, 1);
  cuda::expect_weight(gain, "rmsnorm gain", hidden, 1);
  if (x.size() == 0) return;
  const bool packed = cuda::packable(x) && cuda::packable(normed) && cuda::aligned(gain);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
      cuda::rmsnorm_rebuild_kernel<T, N>
          <<<cuda::blocks_for(tokens, "tokens"), cuda::row_threads<N>(hidden), 0, stream_>>>(
              cuda::rows_of<T>(normed), cuda::rows_of<const T>(x), reciprocal.as<float>(),
              cuda::gain_of(gain), static_cast<int>(hidden));
    });
  });
  cuda::check_launch("rmsnorm_rebuild_kernel");
}

void CudaOps::rmsnorm_backward(const Tensor& d_x, const Tensor& d_gain, const Tensor& d_normed,
                               const Tensor& x, const Tensor& reciprocal, const Tensor& gain) {
  const int64_t tokens = x.rows(), hidden = x.row_size();
  cuda::expect(x, "rmsnorm x", activation_, tokens, hidden);
  cuda::expect(d_x, "rmsnorm d_x", activation_, tokens, hidden);
  cuda::expect(d_normed, "rmsnorm d_normed", activation_, tokens, hidden);
  cuda::expect(reciprocal, "rmsnorm reciprocal", DType::f32, tokens, 1);
  cuda::expect_weight(gain, "rmsnorm gain", hidden, 1);
  if (d_gain) cuda::expect(d_gain, "rmsnorm d_gain", DType::f32, hidden, 1);
  if (x.size() == 0) return;
  const int64_t run = std::max(cuda::kLeastRun, (tokens + cuda::kMostRuns - 1) / cuda::kMostRuns);
  const int64_t runs = (tokens + run - 1) / run;
  float* parts = nullptr;
  if (d_gain) {
    const int64_t bytes = runs * hidden * size_of(DType::f32);
    scratch_.reserve(bytes);
    parts = static_cast<float*>(scratch_.take(bytes));
  }
  const bool packed =
      cuda::packable(x) && cuda::packable(d_x) && cuda::packable(d_normed) && cuda::aligned(gain);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
      cuda::rmsnorm_backward_kernel<T, N>
          <<<cuda::blocks_for(runs, "runs of tokens"), cuda::row_threads<N>(hidden), 0, stream_>>>(
              cuda::rows_of<T>(d_x), parts, cuda::rows_of<const T>(d_normed), cuda::rows_of<const T>(x),
              reciprocal.as<float>(), cuda::gain_of(gain), static_cast<int>(hidden), tokens, run);
    });
  });
  cuda::check_launch("rmsnorm_backward_kernel");
  if (!d_gain) return;
  const unsigned blocks = cuda::blocks_for((hidden + cuda::kWarp - 1) / cuda::kWarp, "columns");
  cuda::add_parts_kernel<<<blocks, dim3(cuda::kWarp, cuda::kWarp), 0, stream_>>>(d_gain.as<float>(), parts,
                                                                                 runs, hidden);
  cuda::check_launch("add_parts_kernel");
}

}  // namespace sinklora
