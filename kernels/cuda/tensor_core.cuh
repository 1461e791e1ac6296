// Tensor-core building blocks for bf16: cp.async, ldmatrix, mma.sync.m16n8k16, and the swizzled tiles they
// read. One name per instruction; PTX ISA sections 9.7.9.25 (cp.async) and 9.7.14 (warp-level matrix
// instructions).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace sinklora::cuda {

inline constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes to shared memory, asynchronously; zeros when not `in_range` (nothing is read then).
__device__ inline void copy_async_16(uint32_t to, const void* from, bool in_range) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(in_range ? 16 : 0)
               : "memory");
}
__device__ inline void copy_async_8(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copy_async_4(uint32_t to, const void* from, bool in_range) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(in_range ? 4 : 0)
               : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ inline void load_matrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrix_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c[16, 8] += a[16, 16] b[16, 8]. Lane l holds c[l / 4][2 (l % 4)], its right neighbour, and both 8 rows
// below.
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
// 16 rows of COLUMNS sums a warp, laid out as mma() leaves them, as the first operand of the next product.
template <int COLUMNS>
__device__ __forceinline__ void to_operand(uint32_t (&x)[COLUMNS / 16][4], const float (&c)[COLUMNS / 8][4]) {
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; ++n) {
    x[n / 2][(n & 1) * 2] = pack_bf16(c[n][0], c[n][1]);
    x[n / 2][(n & 1) * 2 + 1] = pack_bf16(c[n][2], c[n][3]);
  }
}
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline void store_shared(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline void store_shared(uint32_t address, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(address), "f"(x), "f"(y) : "memory");
}
__device__ inline uint2 load_shared_8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ inline uint4 load_shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// A tile of bf16 rows of WIDTH (64 or 128) in shared memory. The 16-byte chunks of a row are permuted by the
// row's last three bits, so that the 8 rows of one ldmatrix phase lie in 8 different bank groups.
template <int WIDTH>
struct Tile {
  static constexpr int row_bytes = WIDTH * 2;
  __device__ static uint32_t offset(int row, int chunk) {
    return static_cast<uint32_t>(row * row_bytes + ((chunk ^ (row & 7)) << 4));
  }
  // The two ways in which the lanes of a warp address 16 rows x 2 chunks for ldmatrix.x4. `row` is a multiple
  // of 8. by_row: lanes 0-15 the rows of the first chunk, 16-31 those of the second: the A operand as stored,
  // and the B operand transposed. by_chunk: first 8 rows in both chunks, then the next 8: the other two.
  __device__ static uint32_t by_row(int lane, int row, int chunk) {
    return offset(row + (lane & 15), chunk + (lane >> 4));
  }
  __device__ static uint32_t by_chunk(int lane, int row, int chunk) {
    return offset(row + (lane & 7) + ((lane >> 4) << 3), chunk + ((lane >> 3) & 1));
  }
};

// Starts to copy ROWS rows; those from `valid` on become zeros. `from` points at row 0. A thread keeps its
// chunk and goes down in steps of a multiple of 8 rows, so that one swizzled address serves all of them.
template <int WIDTH, int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(uint32_t to, const uint16_t* from, int64_t stride, int valid,
                                          int thread) {
  constexpr int chunks = WIDTH / 8, rows_per_step = THREADS / chunks;
  static_assert(rows_per_step % 8 == 0);
  const int row = thread / chunks, chunk = thread % chunks;
  const uint32_t address = to + Tile<WIDTH>::offset(row, chunk);
  const uint16_t* source = from + row * stride + chunk * 8;
#pragma unroll
  for (int step = 0; step < ROWS; step += rows_per_step) {
    if (ROWS % rows_per_step == 0 || row + step < ROWS)
      copy_async_16(address + step * Tile<WIDTH>::row_bytes, source, row + step < valid);
    source += rows_per_step * stride;
  }
}
// D columns in panels (wgmma.cuh) of 64.
template <int THREADS, int ROWS, int D>
__device__ __forceinline__ void load_panels(uint32_t to, uint32_t panel_bytes, const uint16_t* from,
                                            int64_t stride, int valid, int thread) {
#pragma unroll
  for (int panel = 0; panel < D / 64; ++panel)
    load_tile<64, ROWS, THREADS>(to + panel * panel_bytes, from + panel * 64, stride, valid, thread);
}
// Copies rows [0, valid) of a tile to global memory.
template <int WIDTH, int ROWS, int THREADS>
__device__ inline void store_tile(uint16_t* to, int64_t stride, uint32_t from, int valid, int thread) {
  constexpr int chunks = WIDTH / 8;
#pragma unroll 4
  for (int i = thread; i < ROWS * chunks; i += THREADS) {
    const int row = i / chunks, chunk = i % chunks;
    if (row < valid)
      *reinterpret_cast<uint4*>(to + row * stride + chunk * 8) =
          load_shared_16(from + Tile<WIDTH>::offset(row, chunk));
  }
}

// `threads` threads of a block (whole warps) meet at barrier `id`; arrive() does not wait.
__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace sinklora::cuda
