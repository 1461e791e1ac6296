// The parts of the attention backward around its main kernel: delta before it, and the pairs of queries with
// sinks that lie outside their group. Sinks are seen by every query of the sequence, so their columns are as
// long as it is and as narrow as the sinks are few: they get tiles of their own shape. Formulas:
// attention_backward.cu.
//
// delta_kernel: delta[h, t] = sum_d d_out out. Reads both once. One thread for 8 elements. Where there are
// sinks, sinks_kernel does it, for it has dO at hand.
//
// sinks_kernel: delta; dS of all such pairs, for the main kernel to multiply by k into its d_q; and the
// sinks' dK, dV summed over chunks of queries. 8 D FLOP a pair; q, dO and out are read once: memory-bound for
// 16 sinks. One block of 8 warps for (sequence, query head, chunk); up to 64 sinks at a time; a warp owns 16
// of a tile's 128 queries for delta, S and dP, and 16 of the D columns for dK and dV (mma.sync).
//
// finish_kernel: d_k, d_v of the sinks = the main kernel's part + chunks and query heads, always in this
// order.
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace sinklora::cuda {
namespace {

constexpr int delta_threads = 256, sink_threads = 256, rows_per_tile = 128;

__device__ inline float dot_bf16(uint4 x, uint4 y) {
  const uint32_t a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum = fmaf(__uint_as_float(a[i] << 16), __uint_as_float(b[i] << 16), sum);
    sum = fmaf(__uint_as_float(a[i] & 0xffff0000u), __uint_as_float(b[i] & 0xffff0000u), sum);
  }
  return sum;
}

template <int D>
__global__ void __launch_bounds__(delta_threads) delta_kernel(AttentionGradientArguments<uint16_t> a) {
  constexpr int lanes = D / 8;  // of one row
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * delta_threads + threadIdx.x) / lanes;
  const int64_t token = row / a.num_heads, head = row % a.num_heads;
  const int64_t column = head * D + threadIdx.x % lanes * 8;
  float sum = 0;
  if (token < a.tokens)
    sum = dot_bf16(*reinterpret_cast<const uint4*>(a.out.data + token * a.out.stride + column),
                   *reinterpret_cast<const uint4*>(a.d_out.data + token * a.d_out.stride + column));
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (token < a.tokens && threadIdx.x % lanes == 0) a.delta[head * a.tokens + token] = sum;
}

// Shared memory: q and dO [128, D], k and v [SINKS, D], P and dS [128, 64] (SINKS columns used), bounds,
// delta.
template <int D>
struct SinkShared {
  static constexpr uint32_t q = 0, d_out = rows_per_tile * D * 2, p = 2 * rows_per_tile * D * 2;
  static constexpr uint32_t d_s = p + rows_per_tile * 128, ends = d_s + rows_per_tile * 128;
  static constexpr uint32_t delta = ends + rows_per_tile * 4, k = delta + rows_per_tile * 4;
  static constexpr uint32_t bytes(int sinks) { return k + 2 * sinks * D * 2; }
};

// One chunk of queries of one head.
struct SinkWork {
  int64_t sequence, start, slot;
  int head, length, first, end;

  __device__ explicit SinkWork(const AttentionGradientArguments<uint16_t>& a) {
    const int64_t slots = slots_of(a, a.chunk);
    slot = blockIdx.x % slots;
    head = static_cast<int>(blockIdx.x / slots);
    const SlotTile tile(a.offsets, a.sequences, slot, a.chunk);
    sequence = tile.sequence, start = tile.start, first = tile.first, length = tile.length;
    end = min(first + static_cast<int>(a.chunk), length);
  }
};

// delta of a warp's 16 rows of a tile: `out` from global memory, asked for before dO is waited for.
template <int D>
struct TileDelta {
  static constexpr int lanes = D / 8, rows_at_once = 32 / lanes,
                       steps = 16 / rows_at_once;  // lanes: of a row
  uint4 out[steps];

  __device__ static int row(int step) {
    return static_cast<int>(threadIdx.x >> 5) * 16 + step * rows_at_once +
           static_cast<int>(threadIdx.x & 31) / lanes;
  }
  __device__ void load(const AttentionGradientArguments<uint16_t>& a, const SinkWork& w, int first_row) {
    const uint16_t* from =
        a.out.data + (w.start + first_row) * a.out.stride + w.head * D + threadIdx.x % lanes * 8;
#pragma unroll
    for (int i = 0; i < steps; ++i)
      out[i] = row(i) < w.length - first_row ? *reinterpret_cast<const uint4*>(from + row(i) * a.out.stride)
                                             : uint4{};
  }
  // To shared and to global memory. The warp alone reads the former.
  __device__ void finish(const AttentionGradientArguments<uint16_t>& a, const SinkWork& w, int first_row,
                         uint32_t d_out, float* delta) const {
    float sum[steps];
#pragma unroll
    for (int i = 0; i < steps; ++i)
      sum[i] = dot_bf16(out[i], load_shared_16(d_out + Tile<D>::offset(row(i), threadIdx.x % lanes)));
#pragma unroll
    for (int distance = lanes / 2; distance > 0; distance /= 2)
#pragma unroll
      for (int i = 0; i < steps; ++i) sum[i] += __shfl_xor_sync(~0u, sum[i], distance);
    if (threadIdx.x % lanes == 0) {
#pragma unroll
      for (int i = 0; i < steps; ++i) {
        delta[row(i)] = sum[i];
        if (row(i) < w.length - first_row) a.delta[w.head * a.tokens + w.start + first_row + row(i)] = sum[i];
      }
    }
    __syncwarp();
  }
};

// The pairs of 16 queries (a warp's) with SINKS sinks: P and dS to shared memory, dS also to where d_q is
// summed.
template <int SINKS, int D>
__device__ __forceinline__ void sink_rows(const AttentionGradientArguments<uint16_t>& a, const SinkWork& w,
                                          uint32_t memory, const int* ends, const float* delta, int first_row,
                                          int first_sink, int64_t tile_base) {
  using S = SinkShared<D>;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const uint32_t k = memory + S::k, v = k + SINKS * D * 2;
  float s[SINKS / 8][4] = {}, d_p[SINKS / 8][4] = {};
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t q[4], d_out[4];
    load_matrix(q, memory + S::q + Tile<D>::by_row(lane, warp * 16, 2 * step));
    load_matrix(d_out, memory + S::d_out + Tile<D>::by_row(lane, warp * 16, 2 * step));
#pragma unroll
    for (int j = 0; j < SINKS / 16; ++j) {
      uint32_t b[4];
      load_matrix(b, k + Tile<D>::by_chunk(lane, j * 16, 2 * step));
      mma(s[2 * j], q, b[0], b[1]);
      mma(s[2 * j + 1], q, b[2], b[3]);
      load_matrix(b, v + Tile<D>::by_chunk(lane, j * 16, 2 * step));
      mma(d_p[2 * j], d_out, b[0], b[1]);
      mma(d_p[2 * j + 1], d_out, b[2], b[3]);
    }
  }
  // Of the warp's query tile; written if any of the tile's rows has sinks, that is if its last one has.
  const int tile = warp * 16 / static_cast<int>(query_tile),
            last = min(tile * 64 + 63, w.length - 1 - first_row);
  const bool tile_has_sinks = last >= tile * 64 && ends[last] > 0;
  uint16_t* d_s =
      a.sink_d_s + (w.head * a.tile_slots + tile_base + first_row / query_tile) * query_tile * a.sink_columns;
  const float scale_log2 = a.scale * log2_e;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int local = warp * 16 + r * 8 + lane / 4, row = first_row + local;
    const bool in_range = row < w.length;
    const int64_t token = w.start + row;
    const float reference = in_range ? a.lse.data[w.head * a.lse.stride + token] * log2_e : 0.0f;
    const float shift = delta[local];
    uint32_t rounded[SINKS / 8];
#pragma unroll
    for (int n = 0; n < SINKS / 8; ++n) {
      float p[2], g[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const bool sees = first_sink + n * 8 + 2 * (lane & 3) + c < ends[local];
        const float weight = fast_exp2(fmaf(s[n][2 * r + c], scale_log2, -reference));
        p[c] = sees ? weight : 0.0f;
        g[c] = p[c] * (d_p[n][2 * r + c] - shift);
      }
      const uint32_t at = Tile<64>::offset(local, n) + 4 * (lane & 3);
      rounded[n] = pack_bf16(g[0], g[1]);
      store_shared(memory + S::p + at, pack_bf16(p[0], p[1]));
      store_shared(memory + S::d_s + at, rounded[n]);
    }
    if (!tile_has_sinks) continue;  // a branch in the loop above would take it apart
    uint16_t* to = d_s + local * a.sink_columns + first_sink + 2 * (lane & 3);
#pragma unroll
    for (int n = 0; n < SINKS / 8; ++n) *reinterpret_cast<uint32_t*>(to + n * 8) = rounded[n];
  }
}

// dK or dV [SINKS, 16 columns] += x^T y over a tile's 128 queries.
template <int SINKS, int D>
__device__ __forceinline__ void sink_columns(float (&c)[SINKS / 16][2][4], uint32_t x, uint32_t y, int lane,
                                             int column) {
#pragma unroll
  for (int step = 0; step < rows_per_tile / 16; ++step) {
    uint32_t b[4];
    load_matrix_transposed(b, y + Tile<D>::by_row(lane, step * 16, column / 8));
#pragma unroll
    for (int i = 0; i < SINKS / 16; ++i) {
      uint32_t t[4];
      load_matrix_transposed(t, x + Tile<64>::by_chunk(lane, step * 16, i * 2));
      mma(c[i][0], t, b[0], b[1]);
      mma(c[i][1], t, b[2], b[3]);
    }
  }
}

template <int SINKS, int D>
__global__ void __launch_bounds__(sink_threads) sinks_kernel(AttentionGradientArguments<uint16_t> a) {
  using S = SinkShared<D>;
  extern __shared__ __align__(128) char generic[];
  const uint32_t memory = shared_address(generic);
  auto* ends = reinterpret_cast<int*>(generic + S::ends);
  auto* delta = reinterpret_cast<float*>(generic + S::delta);
  const SinkWork w(a);
  if (w.first >= w.end) return;
  const int thread = threadIdx.x, lane = thread & 31, column = (thread >> 5) * 16;
  const int64_t kv_column = w.head / (a.num_heads / a.num_kv_heads) * D;
  const int sinks = static_cast<int>(a.pattern.num_sinks);
  const int64_t tile_base = slot_base(w.start, w.sequence, query_tile);
  for (int sink = 0; sink < sinks; sink += SINKS) {
    float d_k[SINKS / 16][2][4] = {}, d_v[SINKS / 16][2][4] = {};
    const int valid_sinks = min(sinks, w.length) - sink;
    __syncthreads();  // the tiles of the step before are read, here and below
    load_tile<D, SINKS, sink_threads>(memory + S::k, a.k.data + (w.start + sink) * a.k.stride + kv_column,
                                      a.k.stride, valid_sinks, thread);
    load_tile<D, SINKS, sink_threads>(memory + S::k + SINKS * D * 2,
                                      a.v.data + (w.start + sink) * a.v.stride + kv_column, a.v.stride,
                                      valid_sinks, thread);
    for (int row = w.first; row < w.end; row += rows_per_tile) {
      const int valid = w.end - row;
      // Later rows have more sinks outside: where the last one has none, no pair is here, and delta is all.
      const bool pairs = sinks_outside(a.pattern, w.head, row + min(valid, rows_per_tile) - 1, w.length) > 0;
      if (!pairs && sink > 0) continue;
      __syncthreads();
      load_tile<D, rows_per_tile, sink_threads>(memory + S::d_out,
                                                a.d_out.data + (w.start + row) * a.d_out.stride + w.head * D,
                                                a.d_out.stride, valid, thread);
      if (pairs)
        load_tile<D, rows_per_tile, sink_threads>(
            memory + S::q, a.q.data + (w.start + row) * a.q.stride + w.head * D, a.q.stride, valid, thread);
      copy_async_commit();
      TileDelta<D> of_tile;
      if (sink == 0)
        of_tile.load(a, w, row);
      else if (thread < rows_per_tile)
        delta[thread] = thread < valid ? a.delta[w.head * a.tokens + w.start + row + thread] : 0.0f;
      if (thread < rows_per_tile) ends[thread] = sinks_outside(a.pattern, w.head, row + thread, w.length);
      copy_async_wait<0>();
      __syncthreads();
      if (sink == 0) of_tile.finish(a, w, row, memory + S::d_out, delta);
      if (!pairs) continue;
      sink_rows<SINKS, D>(a, w, memory, ends, delta, row, sink, tile_base);
      __syncthreads();
      if (column < D) {
        sink_columns<SINKS, D>(d_v, memory + S::p, memory + S::d_out, lane, column);
        sink_columns<SINKS, D>(d_k, memory + S::d_s, memory + S::q, lane, column);
      }
    }
    if (column >= D) continue;
#pragma unroll
    for (int i = 0; i < SINKS / 16; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = sink + i * 16 + r * 8 + lane / 4;
        float* to = a.sink_parts + ((w.slot * a.num_heads + w.head) * a.sink_columns + at) * 2 * D + column +
                    2 * (lane & 3);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          *reinterpret_cast<float2*>(to + n * 8) = {d_k[i][n][2 * r], d_k[i][n][2 * r + 1]};
          *reinterpret_cast<float2*>(to + D + n * 8) = {d_v[i][n][2 * r], d_v[i][n][2 * r + 1]};
        }
      }
  }
}

// One block of 2 D threads for (sequence, KV head, sink).
template <int D>
__global__ void __launch_bounds__(2 * D) finish_kernel(AttentionGradientArguments<uint16_t> a) {
  const int64_t sinks = a.pattern.num_sinks;
  const int64_t sink = blockIdx.x % sinks, kv_head = blockIdx.x / sinks % a.num_kv_heads;
  const int64_t sequence = blockIdx.x / sinks / a.num_kv_heads;
  const int64_t start = a.offsets[sequence], length = a.offsets[sequence + 1] - start;
  if (sink >= length) return;
  const int64_t group = a.num_heads / a.num_kv_heads, chunks = (length + a.chunk - 1) / a.chunk;
  const int64_t first_slot = slot_base(start, sequence, a.chunk);
  const int element = threadIdx.x;
  float sum = a.sink_base[((sequence * a.num_kv_heads + kv_head) * sinks + sink) * 2 * D + element];
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      sum += a.sink_parts[(((first_slot + chunk) * a.num_heads + head) * a.sink_columns + sink) * 2 * D +
                          element];
  const bool is_key = element < D;
  const auto& to = is_key ? a.d_k : a.d_v;
  to.data[(start + sink) * to.stride + kv_head * D + element % D] =
      static_cast<uint16_t>(pack_bf16(is_key ? sum * a.scale : sum, 0.0f));
}

template <int SINKS, int D>
void launch_sinks_of(const AttentionGradientArguments<uint16_t>& a, cudaStream_t stream) {
  constexpr int shared = SinkShared<D>::bytes(SINKS);
  check_attention(
      cudaFuncSetAttribute(sinks_kernel<SINKS, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
      "attention backward, sinks");
  const unsigned blocks = attention_blocks(slots_of(a, a.chunk) * a.num_heads, "attention backward, sinks");
  sinks_kernel<SINKS, D><<<blocks, sink_threads, shared, stream>>>(a);
  check_attention(cudaGetLastError(), "attention backward, sinks");
}

template <int D>
void launch_delta(const AttentionGradientArguments<uint16_t>& a, cudaStream_t stream) {
  const int64_t rows_per_block = delta_threads / (D / 8);
  const unsigned blocks = attention_blocks((a.tokens * a.num_heads + rows_per_block - 1) / rows_per_block,
                                           "attention backward, delta");
  delta_kernel<D><<<blocks, delta_threads, 0, stream>>>(a);
  check_attention(cudaGetLastError(), "attention backward, delta");
}

template <int D>
void launch_sinks(const AttentionGradientArguments<uint16_t>& a, cudaStream_t stream) {
  a.pattern.num_sinks > 16 ? launch_sinks_of<64, D>(a, stream) : launch_sinks_of<16, D>(a, stream);
}

template <int D>
void finish(const AttentionGradientArguments<uint16_t>& a, cudaStream_t stream) {
  if (a.pattern.num_sinks == 0) return;
  const unsigned blocks =
      attention_blocks(a.sequences * a.num_kv_heads * a.pattern.num_sinks, "attention backward, sinks");
  finish_kernel<D><<<blocks, 2 * D, 0, stream>>>(a);
  check_attention(cudaGetLastError(), "attention backward, sinks");
}

}  // namespace

void backward_delta(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? launch_delta<64>(a, stream) : launch_delta<128>(a, stream);
}
void backward_sinks(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream) {
  if (a.pattern.num_sinks == 0) return backward_delta(a, head_dim, stream);
  head_dim == 64 ? launch_sinks<64>(a, stream) : launch_sinks<128>(a, stream);
}
void backward_finish_sinks(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim,
                           cudaStream_t stream) {
  head_dim == 64 ? finish<64>(a, stream) : finish<128>(a, stream);
}

}  // namespace sinklora::cuda
