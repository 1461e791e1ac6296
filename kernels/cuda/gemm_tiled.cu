// D = alpha A B (+ D) for shapes that cuBLASLt has no kernel for, such as odd strides of bf16.
// Any strides. 2 m n k FLOPs, operands read n/16 and m/16 times: slow, and never on the path of a real model.
// Launch: a block of 16 x 16 threads per tile of D, tiles in one dimension.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.h"

namespace sinklora::cuda {
namespace {

constexpr int kTile = 16;

template <class In, class Out>
__global__ void tiled_product_kernel(TiledProduct p, int64_t tiles_across) {
  __shared__ float tile_a[kTile][kTile + 1], tile_b[kTile][kTile + 1];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t row = static_cast<int64_t>(blockIdx.x) / tiles_across * kTile + y;
  const int64_t column = static_cast<int64_t>(blockIdx.x) % tiles_across * kTile + x;
  const In *const a = static_cast<const In*>(p.a), *const b = static_cast<const In*>(p.b);
  float sum = 0;
  for (int64_t k = 0; k < p.k; k += kTile) {
    tile_a[y][x] = row < p.m && k + x < p.k ? to_float(a[row * p.a_row + (k + x) * p.a_column]) : 0.0f;
    tile_b[y][x] = k + y < p.k && column < p.n ? to_float(b[(k + y) * p.b_row + column * p.b_column]) : 0.0f;
    __syncthreads();
    for (int i = 0; i < kTile; ++i) sum += tile_a[y][i] * tile_b[i][x];
    __syncthreads();
  }
  if (row >= p.m || column >= p.n) return;
  Out* const d = static_cast<Out*>(p.d) + row * p.d_row + column;
  *d = from_float<Out>(p.alpha * sum + (p.accumulate ? to_float(*d) : 0.0f));
}

}  // namespace

void launch_tiled_product(const TiledProduct& product, DType in, DType out, cudaStream_t stream) {
  const int64_t across = (product.n + kTile - 1) / kTile, down = (product.m + kTile - 1) / kTile;
  const unsigned blocks = blocks_for(across * down, "tiles of a matrix product");
  with_type(in, [&]<class In>(In) {
    with_type(out, [&]<class Out>(Out) {
      tiled_product_kernel<In, Out><<<blocks, dim3(kTile, kTile), 0, stream>>>(product, across);
    });
  });
  check_launch("tiled_product_kernel");
}

}  // namespace sinklora::cuda
