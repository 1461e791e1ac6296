// What the attention kernels for sm_80 and later share (attention_mma_forward.cu, attention_mma_backward.cu):
// the two matrix products of a warp, the tiles that a block visits, and how a warp's rows leave.
//
// A warp owns 16 rows (queries, or keys in the kernel of dK and dV) and walks tiles of 64 rows of the other
// side. What the first product leaves in its lanes, rounded, is the left operand of the second as it is:
// nothing of size 16 x 64 ever goes through shared memory.
#pragma once

#include "kernels/cuda/attention_softmax.cuh"

namespace sinklora::cuda {

inline constexpr int mma_threads = 256, mma_tile = 64, queries_of_block = forward_tile;
template <int D>
inline constexpr uint32_t mma_tile_bytes = mma_tile* D * 2;

// One step over 16 of the D columns of c[16, N] += a y^T; y: N rows of a tile.
template <int N, int D>
__device__ __forceinline__ void multiply_step(float (&c)[N / 8][4], const uint32_t (&a)[4], uint32_t y,
                                              int step, int lane) {
#pragma unroll
  for (int j = 0; j < N / 16; ++j) {
    uint32_t b[4];
    load_matrix(b, y + Tile<D>::by_chunk(lane, j * 16, 2 * step));
    mma(c[2 * j], a, b[0], b[1]);
    mma(c[2 * j + 1], a, b[2], b[3]);
  }
}
// c[16, 64] += x y^T; x: the warp's 16 rows, in registers; y: a tile.
template <int D>
__device__ __forceinline__ void multiply_rows(float (&c)[mma_tile / 8][4], const uint32_t (&x)[D / 16][4],
                                              uint32_t y, int lane) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) multiply_step<mma_tile, D>(c, x[step], y, step, lane);
}
// c[16, D] += x y; x: rounded weights [16, N]; y: N rows of a tile.
template <int N, int D>
__device__ __forceinline__ void multiply_columns(float (&c)[D / 8][4], const uint32_t (&x)[N / 16][4],
                                                 uint32_t y, int lane) {
#pragma unroll
  for (int step = 0; step < N / 16; ++step)
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      uint32_t b[4];
      load_matrix_transposed(b, y + Tile<D>::by_row(lane, step * 16, 2 * j));
      mma(c[2 * j], x[step], b[0], b[1]);
      mma(c[2 * j + 1], x[step], b[2], b[3]);
    }
}

// 16 rows of a tile as the left operand.
template <int D>
__device__ __forceinline__ void load_rows(uint32_t (&x)[D / 16][4], uint32_t tile, int row, int lane) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) load_matrix(x[step], tile + Tile<D>::by_row(lane, row, 2 * step));
}

// Rounds a warp's [16, D] times the factors of its two rows a lane into its rows of a tile, and from there to
// global memory in whole 16-byte stores; `to`: row 0 of the 16, of which `valid` exist.
template <int D>
__device__ __forceinline__ void store_rows(uint16_t* to, int64_t stride, int valid, uint32_t tile, int row,
                                           const float (&c)[D / 8][4], const float (&factor)[2], int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      store_shared(tile + Tile<D>::offset(row + r * 8 + lane / 4, n) + 4 * (lane & 3),
                   pack_bf16(c[n][2 * r] * factor[r], c[n][2 * r + 1] * factor[r]));
  __syncwarp();
  store_tile<D, 16, 32>(to, stride, tile + row * D * 2, valid, lane);
}

// The tiles of 64 keys of such a block, in ascending order: first those of the sinks, then those of the run.
struct KeyWalk {
  KeyIntervals keys;
  int low_tiles, count;

  __device__ KeyWalk(const AttentionPattern& pattern, const QueryBlock& w)
      : keys(pattern, w.head, w.first, w.first + w.valid - 1, w.length),
        low_tiles((keys.low_end + mma_tile - 1) / mma_tile),
        count(low_tiles + (keys.end - keys.begin + mma_tile - 1) / mma_tile) {}
  __device__ int begin(int i) const {
    return i < low_tiles ? i * mma_tile : keys.begin + (i - low_tiles) * mma_tile;
  }
  __device__ int limit(int i) const { return i < low_tiles ? keys.low_end : keys.end; }
  __device__ bool masked(int i) const { return !keys.visible(begin(i), begin(i) + mma_tile); }
  // Whether all of it lies in the future of 16 queries from `query` on.
  __device__ bool skipped(int i, int query) const { return !keys.future && begin(i) > query + 15; }
};

// Starts to copy tile i of K and V, one behind the other.
template <int D>
__device__ __forceinline__ void load_keys(const AttentionArguments<uint16_t>& a, const QueryBlock& w,
                                          const KeyWalk& walk, int i, uint32_t to, int thread) {
  const int key = walk.begin(i), rows = walk.limit(i) - key;
  const int64_t token = w.start + key, column = w.head / (a.num_heads / a.num_kv_heads) * D;
  load_tile<D, mma_tile, mma_threads>(to, a.k.data + token * a.k.stride + column, a.k.stride, rows, thread);
  load_tile<D, mma_tile, mma_threads>(to + mma_tile_bytes<D>, a.v.data + token * a.v.stride + column,
                                      a.v.stride, rows, thread);
  copy_async_commit();
}

}  // namespace sinklora::cuda
