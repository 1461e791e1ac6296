// y = x W^T for up to 8 rows of x: every weight is read once, in packs of 16 bytes, and its bytes bound the
// time: out * in * sizeof(T). A warp owns two rows of W and goes along them kAhead packs at a time, x comes
// from the first-level cache; f32 sums, in the order of a lane's packs and then of a butterfly over lanes.
// Launch: (out / 2 / warps) x 128.
#include "kernels/cuda/gemv.h"

#include "kernels/cuda/device.cuh"

namespace sinklora::cuda {
namespace {

constexpr int kThreads = 128, kOutputs = 2, kAhead = 4;

template <class T>
struct Product {
  T* y;
  const T *x, *weight;
  int64_t y_stride, x_stride, weight_stride;
  int64_t rows, out, packs;  // packs of a row of W
  bool accumulate, settled;
};

// A pack that nobody reads again: past the first-level cache, which is x's.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_once(const T* from) {
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  Pack<T, N> pack;
  memcpy(&pack, &words, sizeof words);
  return pack;
}

template <class T, int N>
struct Ahead {
  Pack<T, N> packs[kAhead][kOutputs];
};

template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads) gemv_kernel(Product<T> p) {
  constexpr int N = kPackBytes / static_cast<int>(sizeof(T));
  let_next_begin();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t first = warp * kOutputs;
  if (first >= p.out) return;
  const T* weights[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) weights[o] = p.weight + min(first + o, p.out - 1) * p.weight_stride;
  float sums[ROWS][kOutputs] = {};
  const auto add = [&](const Pack<T, N>(&w)[kOutputs], int64_t at) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (r >= p.rows) break;
      const Pack<T, N> x = load<N>(p.x + r * p.x_stride + at);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o)
#pragma unroll
        for (int i = 0; i < N; ++i)
          sums[r][o] = fmaf(to_float(x.values[i]), to_float(w[o].values[i]), sums[r][o]);
    }
  };
  // The next packs are on their way while these are multiplied.
  Ahead<T, N> next;
  const auto load_ahead = [&](int64_t pack) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o)
        if (pack + a * kWarp < p.packs) next.packs[a][o] = load_once<N>(weights[o] + (pack + a * kWarp) * N);
  };
  if (p.settled) load_ahead(lane);
  wait_for_earlier();
  if (!p.settled) load_ahead(lane);
  for (int64_t pack = lane; pack < p.packs; pack += kAhead * kWarp) {
    const Ahead<T, N> now = next;
    load_ahead(pack + kAhead * kWarp);
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (pack + a * kWarp < p.packs) add(now.packs[a], (pack + a * kWarp) * N);
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const float sum = warp_sum(sums[r][o]);
      if (lane != 0 || r >= p.rows || first + o >= p.out) continue;
      T& to = p.y[r * p.y_stride + first + o];
      to = from_float<T>(p.accumulate ? to_float(to) + sum : sum);
    }
}

}  // namespace

bool gemv_takes(const Tensor& y, const Tensor& x, const Tensor& weight) {
  return x.rows() <= kGemvRows && y.dtype == x.dtype && weight.dtype == x.dtype && packable(x) &&
         packable(weight);
}

void launch_gemv(const Tensor& y, const Tensor& x, const Tensor& weight, bool accumulate, bool settled,
                 cudaStream_t stream) {
  with_type(x.dtype, [&]<class T>(T) {
    const int64_t rows = x.rows(), out = weight.rows();
    const Product<T> p{y.as<T>(),    x.as<T>(),    weight.as<T>(),
                       y.row_stride, x.row_stride, weight.row_stride,
                       rows,         out,          weight.row_size() * size_of(x.dtype) / kPackBytes,
                       accumulate,   settled};
    constexpr int kOutputsOfBlock = kThreads / kWarp * kOutputs;
    const unsigned blocks = blocks_for((out + kOutputsOfBlock - 1) / kOutputsOfBlock, "outputs");
    const auto kernel = rows == 1   ? gemv_kernel<T, 1>
                        : rows == 2 ? gemv_kernel<T, 2>
                        : rows <= 4 ? gemv_kernel<T, 4>
                                    : gemv_kernel<T, 8>;
    launch_beside("gemv_kernel", kernel, blocks, kThreads, stream, p);
  });
}

}  // namespace sinklora::cuda
