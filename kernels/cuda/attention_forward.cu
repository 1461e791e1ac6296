// Attention forward on tensor cores: out = softmax(q k^T / sqrt(D)) v and its log-sum-exp, T x T never stored.
//
// Shapes and dtypes: q, out bf16 [T, Hq * D]; k, v bf16 [T, Hkv * D]; lse f32 [Hq, T]; D = 64 or 128.
// Work: 4 D FLOP a visible pair and query head. Bytes: q and out once, k and v once for every 128 queries that see
// them (from L2 mostly). At 128 queries x 64 keys a tile, arithmetic bounds it.
// Launch: one block of 4 warps for (sequence, query head, 128 queries), later queries of a head first since they see
// more keys; two blocks an SM, so that one's softmax hides behind the other's products. A warp owns 32 queries: it
// keeps their 32 x 64 scores and 32 x D outputs in registers and reads every K and V fragment for two products.
// Keys: at most two intervals, the sinks (in tiles of 64, the rest in tiles of 16) and the group's run (tiles of 64),
// double-buffered through cp.async. Only tiles at the edges of what a row sees compare indices.
// Softmax: base 2 with the scale folded in. Running maxima are raised only when a score exceeds them by 2^8: any
// reference value gives the same quotient, and most rescaling of the outputs falls away.
// Ideas: FlashAttention-2 (Dao, arXiv 2307.08691); the lazy rescaling is FlashAttention-4's.
#include <cmath>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace sinklora::cuda {
namespace {

constexpr int queries_per_block = 128, keys_per_tile = 64, sinks_per_tile = 16, forward_threads = 128;
constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// What a warp carries from tile to tile, for its two 16-row halves; [half][0 or 1]: rows lane / 4 and lane / 4 + 8.
template <int D>
struct Accumulator {
  float out[2][D / 8][4];
  float maximum[2][2];  // of raw scores
  float sum[2][2];      // this lane's part
};

template <int D>
struct ForwardTile {
  uint32_t q, k, v;  // shared addresses; q of the warp's first row
  const RowBounds* bounds;  // of the warp's rows when the tile needs a mask, else null
  int first_key;
};

// One tile of KEYS keys.
template <int KEYS, int D>
__device__ __forceinline__ void attend(Accumulator<D>& acc, const ForwardTile<D>& tile, float scale_log2, int lane) {
  float score[2][KEYS / 8][4] = {};
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) load_matrix(a[half], tile.q + Tile<D>::by_row(lane, half * 16, 2 * step));
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j) {
      uint32_t b[4];
      load_matrix(b, tile.k + Tile<D>::by_chunk(lane, j * 16, 2 * step));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma(score[half][2 * j], a[half], b[0], b[1]);
        mma(score[half][2 * j + 1], a[half], b[2], b[3]);
      }
    }
  }

  bool raise = false;
  float top[2][2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (tile.bounds != nullptr) {
        const RowBounds keys = tile.bounds[half * 16 + r * 8 + lane / 4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c)
            if (!keys.sees(tile.first_key + n * 8 + 2 * (lane & 3) + c)) score[half][n][2 * r + c] = -INFINITY;
      }
      float most = -INFINITY;
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) most = fmaxf(most, fmaxf(score[half][n][2 * r], score[half][n][2 * r + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      top[half][r] = most;
      raise |= (most - acc.maximum[half][r]) * scale_log2 > 8.0f;  // -inf - -inf is NaN: no
    }
  if (__any_sync(~0u, raise)) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float most = fmaxf(acc.maximum[half][r], top[half][r]);
        const float factor = most == -INFINITY ? 1.0f : fast_exp2((acc.maximum[half][r] - most) * scale_log2);
        acc.maximum[half][r] = most;
        acc.sum[half][r] *= factor;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) acc.out[half][n][2 * r] *= factor, acc.out[half][n][2 * r + 1] *= factor;
      }
  }

  uint32_t p[2][KEYS / 16][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float reference[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      reference[r] = acc.maximum[half][r] == -INFINITY ? 0.0f : acc.maximum[half][r] * scale_log2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        score[half][n][c] = fast_exp2(fmaf(score[half][n][c], scale_log2, -reference[c >> 1]));
        acc.sum[half][c >> 1] += score[half][n][c];
      }
      p[half][n / 2][(n & 1) * 2] = pack_bf16(score[half][n][0], score[half][n][1]);
      p[half][n / 2][(n & 1) * 2 + 1] = pack_bf16(score[half][n][2], score[half][n][3]);
    }
  }
#pragma unroll
  for (int step = 0; step < KEYS / 16; ++step)
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      uint32_t b[4];
      load_matrix_transposed(b, tile.v + Tile<D>::by_row(lane, step * 16, 2 * j));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma(acc.out[half][2 * j], p[half][step], b[0], b[1]);
        mma(acc.out[half][2 * j + 1], p[half][step], b[2], b[3]);
      }
    }
}

// The tiles of a block's keys, in ascending order.
struct TileList {
  KeyIntervals keys;
  int wide_sinks, narrow_sinks, count;

  __device__ explicit TileList(const KeyIntervals& intervals) : keys(intervals) {
    const int rest = keys.low_end % keys_per_tile;
    const bool widen = rest > keys_per_tile / 2;  // three narrow tiles cost as much as a wide one
    wide_sinks = keys.low_end / keys_per_tile + (widen ? 1 : 0);
    narrow_sinks = widen ? 0 : (rest + sinks_per_tile - 1) / sinks_per_tile;
    count = wide_sinks + narrow_sinks + (keys.end - keys.begin + keys_per_tile - 1) / keys_per_tile;
  }
  __device__ bool narrow(int i) const { return i >= wide_sinks && i < wide_sinks + narrow_sinks; }
  __device__ int begin(int i) const {
    if (i < wide_sinks) return i * keys_per_tile;
    if (i < wide_sinks + narrow_sinks) return wide_sinks * keys_per_tile + (i - wide_sinks) * sinks_per_tile;
    return keys.begin + (i - wide_sinks - narrow_sinks) * keys_per_tile;
  }
  __device__ int limit(int i) const { return i < wide_sinks + narrow_sinks ? keys.low_end : keys.end; }
};

template <int D>
constexpr int forward_shared = queries_per_block * D * 2 + 4 * keys_per_tile * D * 2 + queries_per_block * 16;

template <int D>
__global__ void __launch_bounds__(forward_threads, 2) forward_kernel(AttentionArguments<uint16_t> a) {
  extern __shared__ __align__(128) char memory[];
  const int tiles = static_cast<int>((a.max_length + queries_per_block - 1) / queries_per_block);
  const int first = (tiles - 1 - static_cast<int>(blockIdx.x) % tiles) * queries_per_block;
  const int head = static_cast<int>(blockIdx.x / tiles % a.num_heads);
  const int64_t sequence = blockIdx.x / tiles / a.num_heads;
  const int64_t start = a.offsets[sequence];
  const int length = static_cast<int>(a.offsets[sequence + 1] - start);
  if (first >= length) return;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int valid = min(queries_per_block, length - first);

  const uint32_t q = shared_address(memory), buffers = q + queries_per_block * D * 2;
  constexpr uint32_t tile_bytes = keys_per_tile * D * 2;
  auto* bounds = reinterpret_cast<RowBounds*>(memory + queries_per_block * D * 2 + 4 * tile_bytes);

  const TileList list(KeyIntervals(a.pattern, head, first, first + valid - 1, length));
  const int64_t kv_column = head / (a.num_heads / a.num_kv_heads) * D;
  const uint16_t* k = a.k.data + start * a.k.stride + kv_column;
  const uint16_t* v = a.v.data + start * a.v.stride + kv_column;
  const auto load = [&](int i) {
    const int key = list.begin(i), rows = list.limit(i) - key;
    const uint32_t to = buffers + (i & 1) * 2 * tile_bytes;
    const uint16_t *from_k = k + key * a.k.stride, *from_v = v + key * a.v.stride;
    if (list.narrow(i)) {
      load_tile<D, sinks_per_tile, forward_threads>(to, from_k, a.k.stride, rows, thread);
      load_tile<D, sinks_per_tile, forward_threads>(to + tile_bytes, from_v, a.v.stride, rows, thread);
    } else {
      load_tile<D, keys_per_tile, forward_threads>(to, from_k, a.k.stride, rows, thread);
      load_tile<D, keys_per_tile, forward_threads>(to + tile_bytes, from_v, a.v.stride, rows, thread);
    }
    copy_async_commit();
  };
  load_tile<D, queries_per_block, forward_threads>(q, a.q.data + (start + first) * a.q.stride + head * D, a.q.stride,
                                                   valid, thread);
  load(0);
  bounds[thread] = row_bounds(a.pattern, head, first + thread, length);

  Accumulator<D> acc = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) acc.maximum[i / 2][i % 2] = -INFINITY;
  const float scale_log2 = a.scale * log2_e;
  const int warp_first = first + warp * 32;
  for (int i = 0; i < list.count; ++i) {
    copy_async_wait<0>();
    __syncthreads();
    if (i + 1 < list.count) load(i + 1);
    const int key = list.begin(i);
    const bool narrow = list.narrow(i);
    const int key_end = key + (narrow ? sinks_per_tile : keys_per_tile);
    const bool mask = !list.keys.visible(key, key_end);
    ForwardTile<D> tile{q + warp * 32 * D * 2, buffers + (i & 1) * 2 * tile_bytes, 0,
                        mask ? bounds + warp * 32 : nullptr, key};
    tile.v = tile.k + tile_bytes;
    if (narrow)
      attend<sinks_per_tile>(acc, tile, scale_log2, lane);
    else if (list.keys.future || key <= warp_first + 31)  // else all of it lies in this warp's future
      attend<keys_per_tile>(acc, tile, scale_log2, lane);
  }

  // Quotient and log-sum-exp; out leaves through the warp's own rows of q, for whole 16-byte stores.
  const uint32_t rows = q + warp * 32 * D * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = acc.sum[half][r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int row = half * 16 + r * 8 + lane / 4;
      if ((lane & 3) == 0 && warp_first + row < length)
        a.lse.data[head * a.lse.stride + start + warp_first + row] =
            acc.maximum[half][r] * a.scale + log2f(sum) * ln_2;
      const float inverse = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        store_shared(rows + Tile<D>::offset(row, n) + 4 * (lane & 3),
                     pack_bf16(acc.out[half][n][2 * r] * inverse, acc.out[half][n][2 * r + 1] * inverse));
    }
  __syncwarp();
  if (warp_first < length)
    store_tile<D, 32, 32>(a.out.data + (start + warp_first) * a.out.stride + head * D, a.out.stride, rows,
                          length - warp_first, lane);
}

template <int D>
void launch(const AttentionArguments<uint16_t>& a, cudaStream_t stream) {
  check_attention(cudaFuncSetAttribute(forward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, forward_shared<D>),
        "attention forward");
  const int64_t tiles = (a.max_length + queries_per_block - 1) / queries_per_block;
  const unsigned blocks = attention_blocks(tiles * a.num_heads * a.sequences, "attention forward");
  forward_kernel<D><<<blocks, forward_threads, forward_shared<D>, stream>>>(a);
  check_attention(cudaGetLastError(), "attention forward");
}

}  // namespace

void forward_tensor_core(const AttentionArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? launch<64>(a, stream) : launch<128>(a, stream);
}

}  // namespace sinklora::cuda
