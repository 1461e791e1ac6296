// The parts of the attention backward around its main kernel: delta before it, and the pairs of queries with
// sinks that lie outside their group. Sinks are seen by every query of the sequence, so their columns are as
// long as it is and as narrow as the sinks are few: they get tiles of their own shape. Formulas:
// attention_backward.cu.
//
// delta_kernel: delta[h, t] = sum_d d_out out. Reads both once. One thread for 8 elements. Where there are
// sinks, sinks_kernel does it, for it has dO at hand.
//
// sinks_kernel: delta; dS of all such pairs, for the main kernel to multiply by k into its d_q; and the
// sinks' dK, dV summed over chunks of queries. 8 D FLOP a pair; q, dO and out are read once: memory-bound.
// One block of 4 warps for (sequence, query head, chunk) walks tiles of 64 queries, of which the next is on
// its way while one is worked on. A warp owns 16 of the tile's queries for delta. Up to 16 sinks: it owns the
// same queries for the products, and the warps add up their dK, dV in the end. More: it owns 16 of 64 sinks,
// and all the queries. Scores are computed transposed, [sinks, queries], so that P^T and dS^T are register
// operands of dV and dK (mma.sync), which stay in registers.
//
// finish_kernel: d_k, d_v of the sinks = the main kernel's part + chunks and query heads, always in this
// order.
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace sinklora::cuda {
namespace {

constexpr int delta_threads = 256, sink_threads = 128, rows_per_tile = 64;
static_assert(rows_per_tile == query_tile);

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

// Whether the products are divided among the warps by query, or else by sink.
template <int SINKS>
inline constexpr bool by_query = SINKS == 16;

// Shared memory: two buffers of q and dO [64, D] (in the end, the warps' sums), k and v [SINKS, D], two of
// the queries' log-sum-exps and numbers of sinks, delta.
template <int SINKS, int D>
struct SinkShared {
  static constexpr uint32_t tile = rows_per_tile * D * 2, k = 4 * tile, v = k + SINKS * D * 2;
  static constexpr uint32_t lse = v + SINKS * D * 2, ends = lse + 2 * rows_per_tile * 4;
  static constexpr uint32_t delta = ends + 2 * rows_per_tile * 4, bytes = delta + rows_per_tile * 4;
  __device__ static uint32_t q(int buffer) { return 2 * buffer * tile; }
  __device__ static uint32_t d_out(int buffer) { return (2 * buffer + 1) * tile; }
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

// Of 16 sinks, the one that is row `row` of an operand: so that a lane, which has two neighbouring rows of 16
// and the two 8 below, has four sinks in a row of dS. (4-byte stores to parts of a sector cost as much as the
// rest.)
__device__ inline int sink_of_row(int row) { return row % 8 / 2 * 4 + row % 2 + row / 8 * 2; }

// The pairs of 16 queries, from `row` of a tile on, with 16 sinks, from `own_sink` of those at k and v on,
// whose first is `sink`: dS to `d_s`, the tile's; dK and dV are added to `sums`, [16 sinks, dK's D columns,
// then dV's].
template <int SINKS, int D>
__device__ __forceinline__ void sink_pairs(float (&sums)[D / 4][4],
                                           const AttentionGradientArguments<uint16_t>& a, uint32_t memory,
                                           const char* generic, int buffer, int sink, int own_sink, int row,
                                           uint16_t* d_s, int lane) {
  using S = SinkShared<SINKS, D>;
  const uint32_t q = memory + S::q(buffer), d_out = memory + S::d_out(buffer);
  float s[2][4] = {}, d_p[2][4] = {};
  const int operand_row = own_sink + sink_of_row(lane & 15);
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    const uint32_t at = Tile<D>::offset(operand_row, 2 * step + (lane >> 4));
    uint32_t x[4], y[4];
    load_matrix(x, memory + S::k + at);
    load_matrix(y, q + Tile<D>::by_chunk(lane, row, 2 * step));
    mma(s[0], x, y[0], y[1]);
    mma(s[1], x, y[2], y[3]);
    load_matrix(x, memory + S::v + at);
    load_matrix(y, d_out + Tile<D>::by_chunk(lane, row, 2 * step));
    mma(d_p[0], x, y[0], y[1]);
    mma(d_p[1], x, y[2], y[3]);
  }
  const float scale_log2 = a.scale * log2_e;
  const int column = row + 2 * (lane & 3);                  // the lane's first query
  const int own = sink + own_sink + sink_of_row(lane / 4);  // its first sink; and the one 2 on
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int at = (buffer * rows_per_tile + column + n * 8) * 4;
    const auto lse = *reinterpret_cast<const float2*>(generic + S::lse + at);
    const auto ends = *reinterpret_cast<const int2*>(generic + S::ends + at);
    const auto delta = *reinterpret_cast<const float2*>(generic + S::delta + (column + n * 8) * 4);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool sees = own + c / 2 * 2 < (c & 1 ? ends.y : ends.x);
      const float weight = fast_exp2(fmaf(s[n][c], scale_log2, -log2_e * (c & 1 ? lse.y : lse.x)));
      s[n][c] = sees ? weight : 0.0f;
      d_p[n][c] = s[n][c] * (d_p[n][c] - (c & 1 ? delta.y : delta.x));
    }
  }
  uint32_t p_rows[1][4], d_s_rows[1][4];
  to_operand<16>(p_rows, s);
  to_operand<16>(d_s_rows, d_p);
  uint16_t* to = d_s + (row + lane / 4) * a.sink_columns + sink + own_sink + 4 * (lane & 3);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    *reinterpret_cast<uint2*>(to + i * 8 * a.sink_columns) = {transposed(d_s_rows[0][2 * i]),
                                                              transposed(d_s_rows[0][2 * i + 1])};
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    uint32_t y[4];
    load_matrix_transposed(y, d_out + Tile<D>::by_row(lane, row, 2 * i));
    mma(sums[D / 8 + 2 * i], p_rows[0], y[0], y[1]);
    mma(sums[D / 8 + 2 * i + 1], p_rows[0], y[2], y[3]);
    load_matrix_transposed(y, q + Tile<D>::by_row(lane, row, 2 * i));
    mma(sums[2 * i], d_s_rows[0], y[0], y[1]);
    mma(sums[2 * i + 1], d_s_rows[0], y[2], y[3]);
  }
}

// Writes the block's dK and dV: a warp its own, or all warps together a part each of what they have summed.
template <int SINKS, int D>
__device__ void put_sums(const float (&sums)[D / 4][4], const AttentionGradientArguments<uint16_t>& a,
                         const SinkWork& w, char* generic, int sink, int own_sink) {
  constexpr int warps = sink_threads / 32;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first = own_sink + sink_of_row(lane / 4), sinks = static_cast<int>(a.pattern.num_sinks);
  float* to = a.sink_parts + ((w.slot * a.num_heads + w.head) * a.sink_columns + sink + first) * 2 * D +
              2 * (lane & 3);
  const auto put = [&](int n, float4 sum) {
    if (sink + first < sinks) *reinterpret_cast<float2*>(to + n * 8) = {sum.x, sum.y};
    if (sink + first + 2 < sinks) *reinterpret_cast<float2*>(to + 2 * 2 * D + n * 8) = {sum.z, sum.w};
  };
  auto* of_warps = reinterpret_cast<float4*>(generic) + lane;  // [warps, D / 4, lanes]
  if (by_query<SINKS>) __syncthreads();                        // all tiles are read
#pragma unroll
  for (int n = 0; n < D / 4; ++n) {
    const float4 sum = {sums[n][0], sums[n][1], sums[n][2], sums[n][3]};
    if (by_query<SINKS>)
      of_warps[(warp * (D / 4) + n) * 32] = sum;
    else
      put(n, sum);
  }
  if (!by_query<SINKS>) return;
  __syncthreads();
  for (int n = warp; n < D / 4; n += warps) {
    float4 sum = of_warps[n * 32];
    for (int other = 1; other < warps; ++other) {
      const float4 more = of_warps[(other * (D / 4) + n) * 32];
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    put(n, sum);
  }
}

template <int SINKS, int D>
__global__ void __launch_bounds__(sink_threads, 2) sinks_kernel(AttentionGradientArguments<uint16_t> a) {
  using S = SinkShared<SINKS, D>;
  extern __shared__ __align__(128) char generic[];
  const uint32_t memory = shared_address(generic);
  auto* delta = reinterpret_cast<float*>(generic + S::delta);
  const SinkWork w(a);
  if (w.first >= w.end) return;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int own_row = by_query<SINKS> ? warp * 16 : 0, own_sink = by_query<SINKS> ? 0 : warp * 16;
  const int64_t kv_column = w.head / (a.num_heads / a.num_kv_heads) * D;
  const int sinks = static_cast<int>(a.pattern.num_sinks);
  uint16_t* const d_s = a.sink_d_s + (w.head * a.tile_slots + slot_base(w.start, w.sequence, query_tile)) *
                                         query_tile * a.sink_columns;  // of the sequence
  // Where a tile has none, delta is all there is to do.
  const auto has_pairs = [&](int row) {
    return tile_has_sinks(a.pattern, w.head, row / rows_per_tile, w.length);
  };
  const auto load = [&](int row, int buffer) {
    const int valid = w.end - row;
    const int64_t token = w.start + row;
    load_tile<D, rows_per_tile, sink_threads>(memory + S::d_out(buffer),
                                              a.d_out.data + token * a.d_out.stride + w.head * D,
                                              a.d_out.stride, valid, thread);
    if (has_pairs(row)) {
      load_tile<D, rows_per_tile, sink_threads>(
          memory + S::q(buffer), a.q.data + token * a.q.stride + w.head * D, a.q.stride, valid, thread);
      if (thread < rows_per_tile) {
        const int at = (buffer * rows_per_tile + thread) * 4;
        copy_async_4(memory + S::lse + at,
                     a.lse.data + w.head * a.lse.stride + token + (thread < valid ? thread : 0),
                     thread < valid);
        *reinterpret_cast<int*>(generic + S::ends + at) =
            thread < valid ? sinks_outside(a.pattern, w.head, row + thread, w.length) : 0;
      }
    }
  };
  for (int sink = 0; sink < sinks; sink += SINKS) {
    float sums[D / 4][4] = {};
    TileDelta<D> of_tile;
    const int valid_sinks = min(sinks, w.length) - sink;
    int row = w.first;
    while (sink > 0 && row < w.end && !has_pairs(row)) row += rows_per_tile;
    __syncthreads();  // the tiles of the sinks before are read
    load_tile<D, SINKS, sink_threads>(memory + S::k, a.k.data + (w.start + sink) * a.k.stride + kv_column,
                                      a.k.stride, valid_sinks, thread);
    load_tile<D, SINKS, sink_threads>(memory + S::v, a.v.data + (w.start + sink) * a.v.stride + kv_column,
                                      a.v.stride, valid_sinks, thread);
    if (row < w.end) load(row, 0);
    if (sink == 0) of_tile.load(a, w, row);
    for (int buffer = 0; row < w.end; row += rows_per_tile, buffer ^= 1) {
      copy_async_commit();
      copy_async_wait<0>();
      __syncthreads();  // this tile is here, and the one before is done with
      const int next = row + rows_per_tile;
      if (next < w.end) load(next, buffer ^ 1);
      if (sink == 0) {
        of_tile.finish(a, w, row, memory + S::d_out(buffer), delta);
        if (next < w.end) of_tile.load(a, w, next);
      } else if (lane < 16) {
        const int i = warp * 16 + lane;
        delta[i] = row + i < w.end ? a.delta[w.head * a.tokens + w.start + row + i] : 0.0f;
      }
      if (!has_pairs(row)) continue;
      if (!by_query<SINKS>) __syncthreads();  // for delta
#pragma unroll 1
      for (int i = 0; i < (by_query<SINKS> ? 16 : rows_per_tile); i += 16)
        sink_pairs<SINKS, D>(sums, a, memory, generic, buffer, sink, own_sink, own_row + i,
                             d_s + row * a.sink_columns, lane);
    }
    put_sums<SINKS, D>(sums, a, w, generic, sink, own_sink);
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
#pragma unroll 8
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
  constexpr int shared = SinkShared<SINKS, D>::bytes;
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
