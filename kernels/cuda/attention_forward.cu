// Attention forward on Hopper's tensor cores (wgmma): out = softmax(q k^T / sqrt(D)) v and its log-sum-exp.
//
// Shapes and dtypes: q, out bf16 [T, Hq * D]; k, v bf16 [T, Hkv * D]; lse f32 [Hq, T]; D = 64 or 128.
// Work: 4 D FLOP a visible pair and query head. Bytes: q and out once, k and v once for every 128 queries
// that see them (from L2 mostly). Arithmetic bounds it. Launch: one block an SM for (sequence, query head, 128
// queries), later queries of a head first since they see more keys. Two warpgroups own 64 queries each, with
// their 64 x 128 scores and 64 x D outputs in registers, and take turns: one multiplies while the other takes
// its softmax. The scores of a tile are issued together with the outputs of the tile before. A third
// warpgroup loads: K and V are double-buffered through cp.async, V one tile behind K.
//
// Keys: at most two intervals, the sinks and the group's run, in tiles of 128; sinks that are fewer have a
// tile of 16 or 64 of their own, before the others. Only tiles at the edges of what a row sees compare
// indices. Softmax: base 2 with the scale folded in. Running maxima are raised only when a score exceeds them
// by 2^8: any reference value gives the same quotient, and most rescaling of the outputs falls away. Ideas:
// FlashAttention-2 and -3 (Dao, arXiv 2307.08691; Shah et al., arXiv 2407.08608); the lazy rescaling is
// FlashAttention-4's.
#include <cmath>

#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace sinklora::cuda {
// Named, so that passes for devices whose kernels are empty find nothing unused.
namespace hopper_forward {

inline constexpr int queries_per_block = forward_tile, keys_per_tile = 128;
inline constexpr int product_threads = 256, load_threads = 128,
                     forward_threads = product_threads + load_threads;
// Named barriers. turn + g: warpgroup g may multiply. first_full: q, the narrow tile and K's tile 0 are there.
// full + 2 b + g: so is buffer b, for warpgroup g; empty + b: both warpgroups have done with it.
inline constexpr int turn = 1, k_full = 3, v_full = 7, k_empty = 11, v_empty = 13, first_full = 15;
// 64 columns of a tile's rows.
inline constexpr uint32_t panel_bytes = 128 * 128;

// score[64, KEYS] = q k^T: issues the products.
template <int KEYS, int D>
__device__ __forceinline__ void multiply_scores(float (&score)[KEYS / 8][4], uint32_t q, uint32_t k) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    const uint32_t at = step / 4 * panel_bytes + step % 4 * 32;
    wgmma<0, 0>(score, matrix_descriptor(q + at, 0), matrix_descriptor(k + at, 0), step > 0);
  }
  wgmma_commit();
}
// out[64, D] += p v: issues the products.
template <int KEYS, int D>
__device__ __forceinline__ void multiply_values(float (&out)[D / 8][4], const uint32_t (&p)[KEYS / 16][4],
                                                uint32_t v) {
#pragma unroll
  for (int step = 0; step < KEYS / 16; ++step)
    wgmma<1>(out, p[step], matrix_descriptor(v + step * 16 * 128, panel_bytes), 1);
  wgmma_commit();
}

// Waits for all products, behind the exponentials, which are to run beside them: ptxas moves a wait in front of them, unless a branch
// stands between. It is never taken (and the same for all warps of a group, as a wait must be).
__device__ __forceinline__ void wait_after_weights(float scale) {
  if (scale < 0)
    asm volatile("wgmma.wait_group.sync.aligned 0; // never" ::: "memory");
  else
    wgmma_wait<0>();
}

// The first tile, when there are sinks for a narrow one.
template <int KEYS, int D>
__device__ __forceinline__ void attend_narrow(Accumulator<D>& acc, uint32_t q, uint32_t k, uint32_t v,
                                              const RowBounds* bounds, int first_key, float scale_log2,
                                              int lane) {
  float score[KEYS / 8][4], factor[2];
  wgmma_fence();
  multiply_scores<KEYS, D>(score, q, k);
  wgmma_wait<0>();
  take_softmax<KEYS, D>(score, acc, factor, bounds, first_key, scale_log2, lane);  // nothing to rescale yet
  uint32_t p[KEYS / 16][4];
  to_operand<KEYS>(p, score);
  wgmma_fence();
  multiply_values<KEYS, D>(acc.out, p, v);
  wgmma_wait<0>();
}

// The tiles of a block's keys: those of 128, in ascending order, and perhaps a narrow one for what is left of
// the sinks.
struct TileList {
  KeyIntervals keys;
  int full_sinks, narrow_width, count;  // count: of the tiles of 128

  __device__ explicit TileList(const KeyIntervals& intervals) : keys(intervals) {
    const int rest = keys.low_end % keys_per_tile;
    full_sinks = keys.low_end / keys_per_tile + (rest > 64 ? 1 : 0);
    narrow_width = rest > 64 || rest == 0 ? 0 : rest > 16 ? 64 : 16;
    count = full_sinks + (keys.end - keys.begin + keys_per_tile - 1) / keys_per_tile;
  }
  __device__ int narrow_begin() const { return full_sinks * keys_per_tile; }
  __device__ int begin(int i) const {
    return i < full_sinks ? i * keys_per_tile : keys.begin + (i - full_sinks) * keys_per_tile;
  }
  __device__ int limit(int i) const { return i < full_sinks ? keys.low_end : keys.end; }
};

template <int D>
inline constexpr uint32_t tile_bytes = D / 64 * panel_bytes;
template <int D>
inline constexpr int forward_shared =
    5 * tile_bytes<D> + queries_per_block * 16 + 1024;  // the last for alignment

// Shared memory: q, two buffers of K, two of V, the rows' bounds. A narrow tile takes the second buffers, and
// tile 1 after it.
template <int D>
struct Buffers {
  uint32_t q;
  __device__ uint32_t k(int i) const { return q + (1 + (i & 1)) * tile_bytes<D>; }
  __device__ uint32_t v(int i) const { return q + (3 + (i & 1)) * tile_bytes<D>; }
};

// The third warpgroup: copies what the other two multiply, K one tile ahead of V.
template <int D>
__device__ void load_all(const AttentionArguments<uint16_t>& a, const QueryBlock& w, const TileList& list,
                         const Buffers<D>& to) {
  const int thread = threadIdx.x - product_threads;
  const int64_t kv_column = w.head / (a.num_heads / a.num_kv_heads) * D;
  const uint16_t* k = a.k.data + w.start * a.k.stride + kv_column;
  const uint16_t* v = a.v.data + w.start * a.v.stride + kv_column;
  const auto load = [&](const uint16_t* from, int64_t stride, uint32_t buffer, int i) {
    const int key = list.begin(i);
    load_panels<load_threads, keys_per_tile, D>(buffer, panel_bytes, from + key * stride, stride,
                                                list.limit(i) - key, thread);
    copy_async_commit();
  };
  const auto tell = [&](int barrier, int threads) {  // that all but the newest copies have arrived
    fence_for_async_reads();
    barrier_arrive(barrier, threads);
  };
  const auto tell_both = [&](int barrier) {
    tell(barrier, load_threads + 128);
    barrier_arrive(barrier + 1, load_threads + 128);
  };
  load_panels<load_threads, queries_per_block, D>(to.q, panel_bytes,
                                                  a.q.data + (w.start + w.first) * a.q.stride + w.head * D,
                                                  a.q.stride, w.valid, thread);
  const bool narrow = list.narrow_width > 0;
  if (narrow) {
    const int key = list.narrow_begin(), rows = list.keys.low_end - key;
    load_panels<load_threads, 64, D>(to.k(1), panel_bytes, k + key * a.k.stride, a.k.stride, rows, thread);
    load_panels<load_threads, 64, D>(to.v(1), panel_bytes, v + key * a.v.stride, a.v.stride, rows, thread);
  }
  load(k, a.k.stride, to.k(0), 0);
  if (narrow) {
    copy_async_wait<0>();
    tell(first_full, forward_threads);
  }
  for (int i = 0; i < list.count; ++i) {
    if (i + 1 < list.count) {
      if (i > 0 || narrow) barrier_sync(k_empty + (i + 1) % 2, forward_threads);
      load(k, a.k.stride, to.k(i + 1), i + 1);
    } else {
      copy_async_commit();
    }
    if (i > 0 || !narrow) copy_async_wait<1>();
    if (i > 0)
      tell_both(v_full + (i - 1) % 2 * 2);
    else if (!narrow)
      tell(first_full, forward_threads);
    if (i > 1 || (i == 1 && narrow)) barrier_sync(v_empty + i % 2, forward_threads);
    load(v, a.v.stride, to.v(i), i);
    if (i + 1 < list.count) {
      copy_async_wait<1>();
      tell_both(k_full + (i + 1) % 2 * 2);
    }
  }
  copy_async_wait<0>();
  tell_both(v_full + (list.count - 1) % 2 * 2);
}

// A warpgroup of products: 64 queries. The two take turns at the tensor cores: while one multiplies, the
// other takes its softmax.
template <int D>
__device__ void attend(const AttentionArguments<uint16_t>& a, const QueryBlock& w, const TileList& list,
                       const Buffers<D>& from, RowBounds* bounds) {
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, group = thread >> 7;
  if (thread % 128 < 64) {
    const int row = group * 64 + thread % 128;
    bounds[row] = row_bounds(a.pattern, w.head, w.first + row, w.length);
  }
  Accumulator<D> acc = {};
  acc.maximum[0] = acc.maximum[1] = -INFINITY;
  const float scale_log2 = a.scale * log2_e;
  const uint32_t own_q = from.q + group * 64 * 128;
  const RowBounds* own_bounds = bounds + warp * 16;
  const auto wait_full = [&](int barrier, int i) {
    barrier_sync(barrier + i % 2 * 2 + group, load_threads + 128);
  };
  const auto release = [&](int barrier, int i) {  // tile i, if another one comes into its place
    if (i + 2 < list.count) barrier_arrive(barrier + i % 2, forward_threads);
  };
  const auto mask_of = [&](int i) {
    const int key = list.begin(i);
    return list.keys.visible(key, key + keys_per_tile) ? nullptr : own_bounds;
  };
  if (group == 1) barrier_arrive(turn, product_threads);
  barrier_sync(first_full, forward_threads);
  if (list.narrow_width > 0) {
    if (list.narrow_width == 16)
      attend_narrow<16>(acc, own_q, from.k(1), from.v(1), own_bounds, list.narrow_begin(), scale_log2, lane);
    else
      attend_narrow<64>(acc, own_q, from.k(1), from.v(1), own_bounds, list.narrow_begin(), scale_log2, lane);
    if (list.count > 1) {
      barrier_arrive(k_empty + 1, forward_threads);
      barrier_arrive(v_empty + 1, forward_threads);
    }
  }
  float score[keys_per_tile / 8][4], factor[2];
  uint32_t p[keys_per_tile / 16][4];
  barrier_sync(turn + group, product_threads);
  wgmma_fence();
  multiply_scores<keys_per_tile, D>(score, own_q, from.k(0));
  if (group == 0 || list.count > 1) barrier_arrive(turn + 1 - group, product_threads);
  wgmma_wait<0>();
  release(k_empty, 0);
  if (take_softmax<keys_per_tile, D>(score, acc, factor, mask_of(0), list.begin(0), scale_log2, lane))
    rescale<D>(acc.out, factor);
  to_operand<keys_per_tile>(p, score);
  for (int i = 1; i < list.count; ++i) {
    wait_full(k_full, i);
    wait_full(v_full, i - 1);
    barrier_sync(turn + group, product_threads);
    wgmma_fence();
    multiply_scores<keys_per_tile, D>(score, own_q, from.k(i));
    multiply_values<keys_per_tile, D>(acc.out, p, from.v(i - 1));
    if (group == 0 || i + 1 < list.count) barrier_arrive(turn + 1 - group, product_threads);
    wgmma_wait<1>();
    release(k_empty, i);
    const bool raise =
        take_softmax<keys_per_tile, D>(score, acc, factor, mask_of(i), list.begin(i), scale_log2, lane);
    wait_after_weights(a.scale);
    if (raise) rescale<D>(acc.out, factor);
    release(v_empty, i - 1);
    to_operand<keys_per_tile>(p, score);
  }
  wait_full(v_full, list.count - 1);
  wgmma_fence();
  multiply_values<keys_per_tile, D>(acc.out, p, from.v(list.count - 1));
  wgmma_wait<0>();

  // Quotient and log-sum-exp; out leaves through the warp's own rows of q, for whole 16-byte stores.
  const uint32_t rows = from.q + warp * 16 * 128;
  const int warp_first = w.first + warp * 16;
  barrier_sync(turn + group, 128);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = acc.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int row = r * 8 + lane / 4;
    if ((lane & 3) == 0 && warp_first + row < w.length)
      a.lse.data[w.head * a.lse.stride + w.start + warp_first + row] =
          acc.maximum[r] * a.scale + log2f(sum) * ln_2;
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      store_shared(rows + n / 8 * panel_bytes + Tile<64>::offset(row, n % 8) + 4 * (lane & 3),
                   pack_bf16(acc.out[n][2 * r] * inverse, acc.out[n][2 * r + 1] * inverse));
  }
  __syncwarp();
#pragma unroll
  for (int panel = 0; panel < D / 64; ++panel)
    store_tile<64, 16, 32>(a.out.data + (w.start + warp_first) * a.out.stride + w.head * D + panel * 64,
                           a.out.stride, rows + panel * panel_bytes, w.length - warp_first, lane);
}

template <int D>
__global__ void __launch_bounds__(forward_threads, 1) forward_kernel(AttentionArguments<uint16_t> a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char unaligned[];
  const Buffers<D> buffers{(shared_address(unaligned) + 1023) & ~1023u};
  const QueryBlock w(a);
  if (w.empty()) return;
  auto* bounds =
      reinterpret_cast<RowBounds*>(unaligned + (buffers.q - shared_address(unaligned)) + 5 * tile_bytes<D>);
  const TileList list(KeyIntervals(a.pattern, w.head, w.first, w.first + w.valid - 1, w.length));
  // Registers go where the accumulators are: 256 x 240 + 128 x 24 is what 384 x 168 allows.
  if (threadIdx.x < product_threads) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    attend<D>(a, w, list, buffers, bounds);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    load_all<D>(a, w, list, buffers);
  }
#else
  __trap();  // attention.cpp refuses other devices
#endif
}

template <int D>
void launch(const AttentionArguments<uint16_t>& a, cudaStream_t stream) {
  check_attention(
      cudaFuncSetAttribute(forward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, forward_shared<D>),
      "attention forward");
  const unsigned blocks = attention_blocks(forward_slots(a) * a.num_heads, "attention forward");
  forward_kernel<D><<<blocks, forward_threads, forward_shared<D>, stream>>>(a);
  check_attention(cudaGetLastError(), "attention forward");
}

}  // namespace hopper_forward

void forward_tensor_core(const AttentionArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? hopper_forward::launch<64>(a, stream) : hopper_forward::launch<128>(a, stream);
}

}  // namespace sinklora::cuda
