// Attention backward on the tensor cores of sm_80 and later (mma.sync): dQ, dK, dV from dO, recomputing P
// from q, k and the log-sum-exp. Hopper has a faster one of its own (attention_backward.cu).
//   P = exp(q k^T / sqrt(D) - lse),  dP = dO v^T,  dS = P (dP - delta),  delta = sum_d dO out,
//   dV = P^T dO,  dK = dS^T q / sqrt(D),  dQ = dS k / sqrt(D).
//
// Shapes and dtypes: q, out, d_q, d_out bf16 [T, Hq * D]; k, v, d_k, d_v bf16 [T, Hkv * D]; lse, delta f32
// [Hq, T]. Two kernels, each of which owns what it writes, so that nothing is added across blocks and every
// sum has one order; the price is S and dP computed twice, 14 D FLOP a visible pair and query head instead of
// 10 D.
//   query_kernel: dQ of 128 queries, block and walk as forward (attention_mma_forward.cu).
//   key_kernel: dK and dV of 64 keys, over the query heads of their group and the query tiles that see them.
//     Sinks are keys that many see: their blocks are the longest, and begin first. Scores are computed
//     transposed, [keys, queries]. 8 warps: 16 keys each, twice, for the two halves of a query tile; the
//     halves are added in the end. q and dO are double-buffered through cp.async.
// Idea: FlashAttention-2 (Dao, arXiv 2307.08691).
#include "kernels/cuda/attention_mma.cuh"

namespace sinklora::cuda {
namespace {

// ---- dQ

template <int D>
constexpr int query_shared = 4 * mma_tile_bytes<D> + queries_of_block * sizeof(RowBounds);

template <int D>
__global__ void __launch_bounds__(mma_threads, 1) query_kernel(AttentionGradientArguments<uint16_t> a) {
  extern __shared__ __align__(128) char generic[];
  const uint32_t memory = shared_address(generic), second = memory + 2 * mma_tile_bytes<D>;
  auto* bounds = reinterpret_cast<RowBounds*>(generic + 4 * mma_tile_bytes<D>);
  const QueryBlock w(a);
  if (w.empty()) return;
  const int thread = threadIdx.x, lane = thread & 31, row = (thread >> 5) * 16, first = w.first + row;
  const KeyWalk walk(a.pattern, w);

  // q and dO go through the buffers of K and V into registers.
  const int64_t token = w.start + w.first, column = w.head * D;
  load_tile<D, queries_of_block, mma_threads>(memory, a.q.data + token * a.q.stride + column, a.q.stride,
                                              w.valid, thread);
  load_tile<D, queries_of_block, mma_threads>(second, a.d_out.data + token * a.d_out.stride + column,
                                              a.d_out.stride, w.valid, thread);
  copy_async_commit();
  if (thread < queries_of_block) bounds[thread] = row_bounds(a.pattern, w.head, w.first + thread, w.length);
  float reference[2], shift[2];  // of this lane's rows
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t query = min(first + r * 8 + lane / 4, w.length - 1);
    reference[r] = a.lse.data[w.head * a.lse.stride + w.start + query] * log2_e;
    shift[r] = a.delta[w.head * a.tokens + w.start + query];
  }
  copy_async_wait<0>();
  __syncthreads();
  uint32_t q[D / 16][4], d_out[D / 16][4];
  load_rows<D>(q, memory, row, lane);
  load_rows<D>(d_out, second, row, lane);
  __syncthreads();
  load_keys<D>(a, w, walk, 0, memory, thread);

  float d_q[D / 8][4] = {};
  const float scale_log2 = a.scale * log2_e;
  for (int i = 0; i < walk.count; ++i) {
    copy_async_wait<0>();
    __syncthreads();  // tile i is there, and everyone is done with the buffer of tile i + 1
    if (i + 1 < walk.count) load_keys<D>(a, w, walk, i + 1, i % 2 == 0 ? second : memory, thread);
    if (walk.skipped(i, first)) continue;
    const uint32_t k = i % 2 == 0 ? memory : second, v = k + mma_tile_bytes<D>;
    float s[mma_tile / 8][4] = {}, d_p[mma_tile / 8][4] = {};
    multiply_rows<D>(s, q, k, lane);
    multiply_rows<D>(d_p, d_out, v, lane);
#pragma unroll
    for (int n = 0; n < mma_tile / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        s[n][c] = fast_exp2(fmaf(s[n][c], scale_log2, -reference[c >> 1])) * (d_p[n][c] - shift[c >> 1]);
    if (walk.masked(i)) {  // afterwards: a branch in the loop above would take it apart
      const int key = walk.begin(i) + 2 * (lane & 3);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const RowBounds keys = bounds[row + r * 8 + lane / 4];
#pragma unroll
        for (int n = 0; n < mma_tile / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c)
            if (!keys.sees(key + n * 8 + c)) s[n][2 * r + c] = 0;
      }
    }
    uint32_t d_s[mma_tile / 16][4];
    to_operand<mma_tile>(d_s, s);
    multiply_columns<mma_tile, D>(d_q, d_s, k, lane);
  }
  __syncthreads();
  const float scales[2] = {a.scale, a.scale};
  store_rows<D>(a.d_q.data + (w.start + first) * a.d_q.stride + column, a.d_q.stride, w.length - first,
                memory, row, d_q, scales, lane);
}

// ---- dK and dV

constexpr int half_tile = mma_tile / 2;

template <int D>
struct KeyShared {  // byte offsets
  static constexpr uint32_t k = 0, v = mma_tile_bytes<D>;
  static constexpr uint32_t q = 2 * mma_tile_bytes<D>, d_out = q + 2 * mma_tile_bytes<D>;  // [2] each
  static constexpr uint32_t lse = d_out + 2 * mma_tile_bytes<D>;                           // [2][64]
  static constexpr uint32_t delta = lse + 2 * mma_tile * 4;
  static constexpr uint32_t bounds = delta + 2 * mma_tile * 4;
  static constexpr uint32_t bytes = bounds + 2 * mma_tile * sizeof(RowBounds);
};
static_assert(KeyShared<128>::bytes <= 99 * 1024, "what compute capability 8.6 gives a block");

// 64 keys of a KV head, the first ones of all heads first.
struct KeyBlock {
  int64_t start;
  int kv_head, length, first, last;

  __device__ explicit KeyBlock(const AttentionArguments<uint16_t>& a) {
    const auto heads = static_cast<unsigned>(a.num_kv_heads);
    const SlotTile tile(a.offsets, a.sequences, blockIdx.x / heads, mma_tile);
    kv_head = static_cast<int>(blockIdx.x % heads);
    start = tile.start, first = tile.first, length = tile.length;
    last = min(first + mma_tile, length) - 1;
  }
};

// The query tiles of one head that see a block's keys, sinks among them included.
struct QueriesOfKeys : QueryTiles {
  __device__ QueriesOfKeys(const AttentionPattern& pattern, const AttentionPattern& runs, int head,
                           const KeyBlock& w)
      : QueryTiles(runs, head, w.first, w.last, w.length) {
    if (w.first >= pattern.num_sinks) return;
    end = (w.length + mma_tile - 1) / mma_tile;
    if (w.last < pattern.num_sinks) full_end = w.length;
  }
};

// All (query head, query tile) of a block, in the order of their sums.
struct QueryWalk {
  AttentionPattern pattern, runs;
  int head, last_head, step = 0;
  QueriesOfKeys tiles;

  __device__ QueryWalk(const AttentionArguments<uint16_t>& a, const KeyBlock& w)
      : pattern(a.pattern),
        runs(without_sinks(a.pattern)),
        head(static_cast<int>(w.kv_head * (a.num_heads / a.num_kv_heads))),
        last_head(head + static_cast<int>(a.num_heads / a.num_kv_heads) - 1),
        tiles(pattern, runs, head, w) {}
  __device__ static AttentionPattern without_sinks(AttentionPattern pattern) {
    pattern.num_sinks = 0;
    return pattern;
  }
  __device__ bool done() const { return head > last_head; }
  __device__ int row() const { return tiles.tile(step) * mma_tile; }
  __device__ bool masked(const KeyBlock& w) const {
    return step < tiles.before || row() < tiles.full_begin ||
           min(row() + mma_tile, w.length) > tiles.full_end || w.first + mma_tile > w.length;
  }
  __device__ void advance(const KeyBlock& w) {
    if (++step < tiles.count()) return;
    step = 0;
    if (++head <= last_head) tiles = QueriesOfKeys(pattern, runs, head, w);
  }
};

template <int D>
__device__ __forceinline__ void load_queries(const AttentionGradientArguments<uint16_t>& a, const KeyBlock& w,
                                             const QueryWalk& at, uint32_t memory, char* generic, int buffer,
                                             int thread) {
  using S = KeyShared<D>;
  const int row = at.row(), valid = w.length - row, r = thread % mma_tile;
  const int64_t token = w.start + row, column = at.head * D;
  load_tile<D, mma_tile, mma_threads>(memory + S::q + buffer * mma_tile_bytes<D>,
                                      a.q.data + token * a.q.stride + column, a.q.stride, valid, thread);
  load_tile<D, mma_tile, mma_threads>(memory + S::d_out + buffer * mma_tile_bytes<D>,
                                      a.d_out.data + token * a.d_out.stride + column, a.d_out.stride, valid,
                                      thread);
  // Zeros behind the end: such queries have P = 1 and dO = 0, which add nothing.
  const bool in_range = r < valid;
  const int64_t query = token + (in_range ? r : 0);
  const uint32_t at_row = (buffer * mma_tile + r) * 4;
  if (thread < mma_tile)
    copy_async_4(memory + S::lse + at_row, a.lse.data + at.head * a.lse.stride + query, in_range);
  else if (thread < 2 * mma_tile)
    copy_async_4(memory + S::delta + at_row, a.delta + at.head * a.tokens + query, in_range);
  else if (thread < 3 * mma_tile && at.masked(w))
    reinterpret_cast<RowBounds*>(generic + S::bounds)[buffer * mma_tile + r] =
        row_bounds(at.pattern, at.head, row + r, w.length);
  copy_async_commit();
}

// P and dS of 16 keys (this lane's first is `key`) with 32 queries, from raw scores and dP. Columns are
// queries.
__device__ __forceinline__ void take_gradients(float (&s)[half_tile / 8][4], float (&d_p)[half_tile / 8][4],
                                               const float* lse, const float* delta, const RowBounds* bounds,
                                               float scale_log2, int key, int lane) {
#pragma unroll
  for (int n = 0; n < half_tile / 8; ++n)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int query = n * 8 + 2 * (lane & 3) + c;
      const float reference = lse[query] * log2_e, shift = delta[query];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float& p = s[n][2 * r + c];
        p = fast_exp2(fmaf(p, scale_log2, -reference));
        d_p[n][2 * r + c] = p * (d_p[n][2 * r + c] - shift);
      }
    }
  if (bounds == nullptr) return;  // a branch in the loop above would take it apart
#pragma unroll
  for (int n = 0; n < half_tile / 8; ++n)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const RowBounds keys = bounds[n * 8 + 2 * (lane & 3) + c];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (!keys.sees(key + r * 8)) s[n][2 * r + c] = d_p[n][2 * r + c] = 0;
    }
}

// The second half's sums travel through shared memory to the warp of the first half, which adds them to its
// own. `at`: of this pair of warps.
template <int D>
__device__ __forceinline__ void put_sums(float4* at, const float (&c)[D / 8][4], int lane) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n) at[n * 32 + lane] = {c[n][0], c[n][1], c[n][2], c[n][3]};
}
template <int D>
__device__ __forceinline__ void add_sums(float (&c)[D / 8][4], const float4* at, int lane) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    const float4 other = at[n * 32 + lane];
    c[n][0] += other.x, c[n][1] += other.y, c[n][2] += other.z, c[n][3] += other.w;
  }
}

template <int D>
__global__ void __launch_bounds__(mma_threads, 1) key_kernel(AttentionGradientArguments<uint16_t> a) {
  using S = KeyShared<D>;
  extern __shared__ __align__(128) char generic[];
  const uint32_t memory = shared_address(generic);
  const KeyBlock w(a);
  if (w.first >= w.length) return;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int row = warp % 4 * 16, half = warp / 4;  // this warp's keys, its half of the queries
  const int64_t kv = w.start + w.first, column = w.kv_head * D;
  const int valid = w.last - w.first + 1;
  load_tile<D, mma_tile, mma_threads>(memory + S::k, a.k.data + kv * a.k.stride + column, a.k.stride, valid,
                                      thread);
  load_tile<D, mma_tile, mma_threads>(memory + S::v, a.v.data + kv * a.v.stride + column, a.v.stride, valid,
                                      thread);
  QueryWalk at(a, w);
  load_queries<D>(a, w, at, memory, generic, 0, thread);

  float d_k[D / 8][4] = {}, d_v[D / 8][4] = {};
  const float scale_log2 = a.scale * log2_e;
  for (int buffer = 0; !at.done(); buffer ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, and everyone is done with the other buffer
    const bool masked = at.masked(w);
    at.advance(w);
    if (!at.done()) load_queries<D>(a, w, at, memory, generic, buffer ^ 1, thread);
    const int first_query = buffer * mma_tile + half * half_tile;  // of this warp, in the buffers
    const uint32_t q = memory + S::q + first_query * D * 2, d_out = memory + S::d_out + first_query * D * 2;
    const auto* lse = reinterpret_cast<const float*>(generic + S::lse) + first_query;
    const auto* delta = reinterpret_cast<const float*>(generic + S::delta) + first_query;
    const auto* bounds = reinterpret_cast<const RowBounds*>(generic + S::bounds) + first_query;

    float s[half_tile / 8][4] = {}, d_p[half_tile / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32_t x[4];
      load_matrix(x, memory + S::k + Tile<D>::by_row(lane, row, 2 * step));
      multiply_step<half_tile, D>(s, x, q, step, lane);
      load_matrix(x, memory + S::v + Tile<D>::by_row(lane, row, 2 * step));
      multiply_step<half_tile, D>(d_p, x, d_out, step, lane);
    }
    take_gradients(s, d_p, lse, delta, masked ? bounds : nullptr, scale_log2, w.first + row + lane / 4, lane);
    uint32_t p[half_tile / 16][4], d_s[half_tile / 16][4];
    to_operand<half_tile>(p, s);
    to_operand<half_tile>(d_s, d_p);
    multiply_columns<half_tile, D>(d_v, p, d_out, lane);
    multiply_columns<half_tile, D>(d_k, d_s, q, lane);
  }

  __syncthreads();
  float4* const sums = reinterpret_cast<float4*>(generic + S::q) + warp % 4 * (2 * D / 8 * 32);
  if (half == 1) {
    put_sums<D>(sums, d_k, lane);
    put_sums<D>(sums + D / 8 * 32, d_v, lane);
  }
  __syncthreads();
  if (half == 1) return;
  add_sums<D>(d_k, sums, lane);
  add_sums<D>(d_v, sums + D / 8 * 32, lane);
  const float scales[2] = {a.scale, a.scale}, ones[2] = {1, 1};
  store_rows<D>(a.d_k.data + (kv + row) * a.d_k.stride + column, a.d_k.stride, valid - row, memory + S::k,
                row, d_k, scales, lane);
  store_rows<D>(a.d_v.data + (kv + row) * a.d_v.stride + column, a.d_v.stride, valid - row, memory + S::v,
                row, d_v, ones, lane);
}

template <int D>
void launch(const AttentionGradientArguments<uint16_t>& a, cudaStream_t stream) {
  constexpr const char* name = "attention backward, mma";
  constexpr int key_shared = KeyShared<D>::bytes;
  check_attention(
      cudaFuncSetAttribute(query_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, query_shared<D>),
      name);
  check_attention(
      cudaFuncSetAttribute(key_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, key_shared), name);
  const unsigned query_blocks = attention_blocks(forward_slots(a) * a.num_heads, name);
  query_kernel<D><<<query_blocks, mma_threads, query_shared<D>, stream>>>(a);
  check_attention(cudaGetLastError(), name);
  const unsigned key_blocks = attention_blocks(slots_of(a, mma_tile) * a.num_kv_heads, name);
  key_kernel<D><<<key_blocks, mma_threads, key_shared, stream>>>(a);
  check_attention(cudaGetLastError(), name);
}

}  // namespace

void backward_mma(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? launch<64>(a, stream) : launch<128>(a, stream);
}

}  // namespace sinklora::cuda
