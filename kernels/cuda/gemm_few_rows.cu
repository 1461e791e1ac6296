// y = x W^T for up to 32 rows of x in bf16: every weight is read once, in packs of 16 bytes, and its bytes
// bound the time: 2 out * in. Tensor cores (mma.sync, sm_80 and later) so that rows cost no time of their
// own; sums in f32.
//
// A block owns 16 rows of W, the left operand, and 8 warps share their columns, in chunks of 128. A lane's
// packs go into the products as they come from memory: which 16 of 32 neighbouring columns a product takes
// does not matter as long as W and x agree. The next chunk of W is on its way while one is multiplied; x
// comes from the first-level cache. In the end the warps' sums are added in order. Launch: (out / 16) x 256.
#include "kernels/cuda/gemm_few_rows.h"

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace sinklora::cuda {
namespace {

constexpr int kWarps = 8, kOutputs = 16, kTileRows = 8;
constexpr int kPackElements = 8, kSteps = 4;  // of a chunk, 4 packs side by side each
constexpr int kChunkPacks = 4 * kSteps;

struct Product {
  bf16* y;
  const bf16 *x, *weight;
  int64_t y_stride, x_stride, weight_stride;
  int rows, packs;  // packs of a row of W
  int64_t out;
  bool accumulate, settled;
};

// 16 bytes that nobody reads again: past the first-level cache, which is x's.
__device__ __forceinline__ uint4 load_once(const bf16* from) {
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}

struct Chunk {
  uint4 low[kSteps], high[kSteps];  // of rows lane / 4 and 8 below
};

template <int TILES>
__global__ void __launch_bounds__(kWarps* kWarp, 2) few_rows_kernel(Product p) {
  __shared__ float sums[kWarps][TILES * kTileRows][kOutputs + 1];
  let_next_begin();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kOutputs;
  const bf16* const low = p.weight + min(first + lane / 4, p.out - 1) * p.weight_stride;
  const bf16* const high = p.weight + min(first + lane / 4 + 8, p.out - 1) * p.weight_stride;
  const bf16* x[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) x[t] = p.x + min(t * kTileRows + lane / 4, p.rows - 1) * p.x_stride;
  const auto load_chunk = [&](int begin) {
    Chunk chunk;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int pack = begin + 4 * s + lane % 4;
      const bool there = pack < p.packs;
      chunk.low[s] = there ? load_once(low + pack * kPackElements) : uint4{};
      chunk.high[s] = there ? load_once(high + pack * kPackElements) : uint4{};
    }
    return chunk;
  };

  float c[TILES][4] = {};
  int begin = warp * kChunkPacks;
  Chunk next;
  if (p.settled) next = load_chunk(begin);
  wait_for_earlier();
  if (!p.settled) next = load_chunk(begin);
  for (; begin < p.packs; begin += kWarps * kChunkPacks) {
    const Chunk now = next;
    next = load_chunk(begin + kWarps * kChunkPacks);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int pack = begin + 4 * s + lane % 4;
      const uint4 &a = now.low[s], &b = now.high[s];
      const uint32_t first_half[4] = {a.x, b.x, a.y, b.y}, second_half[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const uint4 right =
            pack < p.packs ? *reinterpret_cast<const uint4*>(x[t] + pack * kPackElements) : uint4{};
        mma(c[t], first_half, right.x, right.y);
        mma(c[t], second_half, right.z, right.w);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < TILES; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[warp][t * kTileRows + 2 * (lane % 4) + i % 2][lane / 4 + i / 2 * 8] = c[t][i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < p.rows * kOutputs; i += kWarps * kWarp) {
    const int row = i / kOutputs, output = i % kOutputs;
    if (first + output >= p.out) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][row][output];
    bf16& to = p.y[row * p.y_stride + first + output];
    to = from_float<bf16>(p.accumulate ? to_float(to) + sum : sum);
  }
}

}  // namespace

bool few_rows(const Tensor& y, const Tensor& x, const Tensor& weight) {
  return x.rows() <= kFewRows && y.dtype == DType::bf16 && x.dtype == DType::bf16 &&
         weight.dtype == DType::bf16 && packable(x) && packable(weight);
}

void multiply_few_rows(const Tensor& y, const Tensor& x, const Tensor& weight, bool accumulate, bool settled,
                       cudaStream_t stream) {
  const int64_t rows = x.rows(), out = weight.rows();
  const Product p{y.as<bf16>(),
                  x.as<bf16>(),
                  weight.as<bf16>(),
                  y.row_stride,
                  x.row_stride,
                  weight.row_stride,
                  static_cast<int>(rows),
                  narrow<int32_t>(weight.row_size() / kPackElements, "columns"),
                  out,
                  accumulate,
                  settled};
  const auto kernel = rows <= 8    ? few_rows_kernel<1>
                      : rows <= 16 ? few_rows_kernel<2>
                      : rows <= 24 ? few_rows_kernel<3>
                                   : few_rows_kernel<4>;
  launch_beside("few_rows_kernel", kernel, blocks_for((out + kOutputs - 1) / kOutputs, "outputs"),
                kWarps * kWarp, stream, p);
}

}  // namespace sinklora::cuda
