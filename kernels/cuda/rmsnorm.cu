// RMSNorm with the residual sum in front of it, its rebuilding and its backward.
//   forward   sum = x + delta;  r = 1 / sqrt(mean(sum^2) + epsilon);  normed = gain * sum * r
//   backward  d_x += r (g - x r^2 mean(g x)),  g = gain * d_normed;   d_gain += sum over t of d_normed x r
// x, delta, sum, normed, d_x, d_normed [T, H] in bf16 or f32; r [T] and d_gain [H] in f32; gain [H] in bf16
// or f32. Moves 4 T H elements forward (2 without delta), 2 to rebuild, 4 backward; about 4 and 10 FLOPs an
// element. Launch: a block per token forward; a thread holds up to four packs of the row, so that a row is
// read once. Backward 264 blocks, two for each multiprocessor of an H100, whatever the GPU, take the tokens
// in turn: the next ones travel to shared memory (cp.async, up to 72 KiB a block under way) while one is
// worked on. A block keeps its part of d_gain in registers; the parts, 1/31 of what 8192 tokens move, are
// added in the order of the blocks by a second kernel.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kPacks = 4;          // of a row in the registers of a thread
constexpr int kMostThreads = 512;  // leaves 128 registers to each
// The backward. More blocks would hide no more latency and write more parts of d_gain.
constexpr int kBackwardPacks = 2;
constexpr int kMostBackwardThreads = 1024;
constexpr int64_t kMostRuns = 264;         // blocks
constexpr int64_t kLeastRun = 4;           // tokens of a block
constexpr int64_t kRingBytes = 96 * 1024;  // of shared memory: what compute capability 8.6 gives a block
constexpr int kMostStages = 4;

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
  let_next_begin();
  wait_for_earlier();
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

// Waits for the oldest of `stages` groups of copies.
__device__ __forceinline__ void wait_for_oldest(int stages) {
  if (stages == 4)
    copy_async_wait<3>();
  else if (stages == 2)
    copy_async_wait<1>();
  else
    copy_async_wait<0>();
}

// The rows of the tokens to come wait in shared memory: d_normed, x and d_x of `stages` tokens, a power of
// two. A thread copies and reads its own packs only, so that no barrier guards them.
template <class T, int N>
struct TokenRing {
  T* memory;
  int stages, hidden;

  __device__ T* at(int step, int which, int c) const {
    return memory + ((step & (stages - 1)) * 3 + which) * hidden + c;
  }
  __device__ void copy(int step, int which, int c, const T* from) const {
    if constexpr (sizeof(T) * N == kPackBytes)
      copy_async_16(shared_address(at(step, which, c)), from, true);
    else
      store<N>(at(step, which, c), load<N>(from));
  }
};

// Block b of the `runs` takes tokens b, b + runs, ... d_gain_parts: [runs, H] or nowhere.
template <class T, int N>
__global__ void __launch_bounds__(kMostBackwardThreads)
    rmsnorm_backward_kernel(Rows<T> d_x, float* d_gain_parts, Rows<const T> d_normed, Rows<const T> x,
                            const float* reciprocal, Gain gain, int hidden, int64_t tokens, int64_t runs,
                            int stages) {
  extern __shared__ __align__(kPackBytes) char shared[];
  __shared__ float partial[kMostBackwardThreads / kWarp];
  const TokenRing<T, N> ring{reinterpret_cast<T*>(shared), stages, hidden};
  const int own = static_cast<int>((tokens - static_cast<int64_t>(blockIdx.x) + runs - 1) / runs);
  const auto token_of = [&](int step) { return static_cast<int64_t>(blockIdx.x) + step * runs; };
  const auto fetch = [&](int step) {
    if (step < own) {
      const int64_t token = token_of(step);
#pragma unroll
      for (int p = 0; p < kBackwardPacks; ++p) {
        const int c = column<N>(p);
        if (c >= hidden) break;
        ring.copy(step, 0, c, d_normed[token] + c);
        ring.copy(step, 1, c, x[token] + c);
        ring.copy(step, 2, c, d_x[token] + c);
      }
    }
    copy_async_commit();  // an empty group too: the waits count groups
  };
  float gains[kBackwardPacks][N], d_gain[kBackwardPacks][N] = {};
#pragma unroll
  for (int p = 0; p < kBackwardPacks; ++p)
    if (column<N>(p) < hidden) load_floats<N>(gains[p], gain.data, gain.is_bf16, column<N>(p));
  for (int step = 0; step < stages - 1; ++step) fetch(step);
  float next_r = reciprocal[token_of(0)];
  for (int step = 0; step < own; ++step) {
    fetch(step + stages - 1);
    wait_for_oldest(stages);
    const float r = next_r;
    if (step + 1 < own) next_r = reciprocal[token_of(step + 1)];
    float dot = 0;
#pragma unroll
    for (int p = 0; p < kBackwardPacks; ++p) {
      const int c = column<N>(p);
      if (c >= hidden) break;
      const Pack<T, N> dy = load<N>(ring.at(step, 0, c)), in = load<N>(ring.at(step, 1, c));
      for (int i = 0; i < N; ++i) {
        const float d = to_float(dy.values[i]), value = to_float(in.values[i]);
        dot += gains[p][i] * d * value;
        d_gain[p][i] += d * (value * r);
      }
    }
    const float along = block_sum(dot, partial) / static_cast<float>(hidden) * r * r;
#pragma unroll
    for (int p = 0; p < kBackwardPacks; ++p) {
      const int c = column<N>(p);
      if (c >= hidden) break;
      const Pack<T, N> dy = load<N>(ring.at(step, 0, c)), in = load<N>(ring.at(step, 1, c));
      Pack<T, N> dx = load<N>(ring.at(step, 2, c));
      for (int i = 0; i < N; ++i)
        dx.values[i] = from_float<T>(to_float(dx.values[i]) + r * (gains[p][i] * to_float(dy.values[i]) -
                                                                   to_float(in.values[i]) * along));
      store<N>(d_x[token_of(step)] + c, dx);
    }
  }
  if (!d_gain_parts) return;
#pragma unroll
  for (int p = 0; p < kBackwardPacks; ++p) {
    const int c = column<N>(p);
    if (c >= hidden) break;
    constexpr int kStep = N < 4 ? N : 4;
    for (int i = 0; i < N; i += kStep) {
      Pack<float, kStep> part;
      for (int j = 0; j < kStep; ++j) part.values[j] = d_gain[p][i + j];
      store<kStep>(d_gain_parts + static_cast<int64_t>(blockIdx.x) * hidden + c + i, part);
    }
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
#pragma unroll 8
    for (int64_t row = warp; row < rows; row += kWarp) sum += parts[row * columns + c];
  sums[warp][lane] = sum;
  __syncthreads();
  const float total = warp_sum(sums[lane][warp]);  // of column `warp` of this block
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarp + warp;
  if (lane == 0 && own < columns) to[own] += total;
}

// The threads that hold a row of `hidden` elements, each up to `each` packs of N.
template <int N>
unsigned row_threads(int64_t hidden, int64_t each = kPacks, int64_t most = kMostThreads) {
  const int64_t packs = (hidden + N - 1) / N, threads = (packs + each - 1) / each;
  if (threads > most)
    fail_internal("rmsnorm: rows of {} elements; the kernel holds up to {} of this alignment", hidden,
                  most * each * N);
  return static_cast<unsigned>((threads + kWarp - 1) / kWarp * kWarp);
}

struct BackwardRows {
  const Tensor &d_x, &d_normed, &x, &reciprocal, &gain;
};
template <class T, int N>
void launch_backward(const BackwardRows& rows, float* d_gain_parts, int64_t runs, cudaStream_t stream) {
  const int64_t hidden = rows.x.row_size(), token_bytes = 3 * hidden * static_cast<int64_t>(sizeof(T));
  int stages = kMostStages;
  while (stages > 1 && stages * token_bytes > kRingBytes) stages /= 2;
  const int ring_bytes = narrow<int>(stages * token_bytes, "bytes of a row of rmsnorm");
  const unsigned threads = row_threads<N>(hidden, kBackwardPacks, kMostBackwardThreads);
  SINKLORA_CUDA(cudaFuncSetAttribute(rmsnorm_backward_kernel<T, N>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, ring_bytes));
  rmsnorm_backward_kernel<T, N><<<blocks_for(runs, "runs of tokens"), threads, ring_bytes, stream>>>(
      rows_of<T>(rows.d_x), d_gain_parts, rows_of<const T>(rows.d_normed), rows_of<const T>(rows.x),
      rows.reciprocal.as<float>(), gain_of(rows.gain), static_cast<int>(hidden), rows.x.rows(), runs, stages);
  check_launch("rmsnorm_backward_kernel");
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
      cuda::launch_beside("rmsnorm_kernel", cuda::rmsnorm_kernel<T, N>, cuda::blocks_for(tokens, "tokens"),
                          cuda::row_threads<N>(hidden), stream_, cuda::rows_of<T>(sum),
                          cuda::rows_of<T>(normed), reciprocal.as<float>(), cuda::rows_of<const T>(x),
                          cuda::rows_of<const T>(delta), cuda::gain_of(gain), static_cast<float>(epsilon),
                          static_cast<int>(hidden));
    });
  });
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
  const int64_t runs = std::min(cuda::kMostRuns, (tokens + cuda::kLeastRun - 1) / cuda::kLeastRun);
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
      cuda::launch_backward<T, N>({d_x, d_normed, x, reciprocal, gain}, parts, runs, stream_);
    });
  });
  if (!d_gain) return;
  const unsigned blocks = cuda::blocks_for((hidden + cuda::kWarp - 1) / cuda::kWarp, "columns");
  cuda::add_parts_kernel<<<blocks, dim3(cuda::kWarp, cuda::kWarp), 0, stream_>>>(d_gain.as<float>(), parts,
                                                                                 runs, hidden);
  cuda::check_launch("add_parts_kernel");
}

}  // namespace sinklora
