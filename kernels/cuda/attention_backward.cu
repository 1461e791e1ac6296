// Attention backward on tensor cores: dQ, dK, dV from dO, recomputing P from q, k and the log-sum-exp.
//   P = exp(q k^T / sqrt(D) - lse),  dP = dO v^T,  dS = P (dP - delta),  delta = sum_d dO out,
//   dV = P^T dO,  dK = dS^T q / sqrt(D),  dQ = dS k / sqrt(D).
//
// Shapes and dtypes: q, out, d_q, d_out bf16 [T, Hq * D]; k, v, d_k, d_v bf16 [T, Hkv * D]; lse, delta f32 [Hq, T].
// Work: 10 D FLOP a visible pair and query head. Bytes: q and dO (and the f32 sum of dQ, twice) once for every
// 128 keys that see them, from L2 mostly.
// Launch: one block an SM for (sequence, KV head, 128 keys): 8 warps of products and 4 of accumulation. K, V, dK and
// dV stay (the latter two in registers) while the block walks the query heads of its group and their query tiles of
// 64 rows in ascending order; q and dO are double-buffered through cp.async.
// dQ is a sum over key tiles, that is over blocks. It is the same bits on every run: each query tile has a turn
// counter, key tiles add in descending order, and the last one rounds and writes d_q. Taken in descending order of
// key tiles, blocks never wait for long: a block begins at its diagonal, one step before the next one needs it.
// The accumulation warps do all of that (wait, bulk add in L2, release) beside the products.
// Blocks draw their work by ticket, so that what a block waits for has always begun.
// Sinks outside a row's own group are not visited here: attention_sinks.cu.
// Ideas: FlashAttention-2's tiling (Dao, arXiv 2307.08691); FlashAttention-3's deterministic order, shortest first.
#include <cmath>
#include <new>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace sinklora::cuda {
namespace {

constexpr int product_threads = 256, sum_threads = 128, backward_threads = product_threads + sum_threads;
constexpr int queries = query_tile, keys = key_tile;
constexpr float log2_e = 1.4426950408889634f;
// Named barriers: d_q tile written; d_q tile free again; among the products' warps; among the accumulation warps.
constexpr int written = 1, freed = 2, products = 3, sums = 4;

template <int D>
struct BackwardShared {  // byte offsets
  static constexpr uint32_t k = 0, v = k + keys * D * 2;
  static constexpr uint32_t q = v + keys * D * 2;             // [2]
  static constexpr uint32_t d_out = q + 2 * queries * D * 2;  // [2]
  static constexpr uint32_t p = d_out + 2 * queries * D * 2, d_s = p + queries * keys * 2;
  static constexpr uint32_t d_q = d_s + queries * keys * 2;  // f32
  static constexpr uint32_t lse = d_q + queries * D * 4;     // [2][64]
  static constexpr uint32_t delta = lse + 2 * queries * 4;
  static constexpr uint32_t bounds = delta + 2 * queries * 4;
  static constexpr uint32_t work = bounds + 2 * queries * 16;
  static constexpr uint32_t bytes = work + 128;
};

// One item of work: what a block is to do. It lies in shared memory: registers are short.
struct Work {
  AttentionPattern runs;  // the pattern without sinks
  int64_t sequence, start;
  int kv_head, tile, length, first_key, last_key, heads_per_group;

  __device__ Work(const AttentionGradientArguments<uint16_t>& a, int64_t item) : runs(a.pattern) {
    runs.num_sinks = 0;
    const int64_t tiles = (a.max_length + keys - 1) / keys;
    sequence = item / (tiles * a.num_kv_heads);
    int64_t rest = item % (tiles * a.num_kv_heads);
    const int64_t section = rest / (a.heads_at_once * tiles);
    const int64_t heads = min(a.heads_at_once, a.num_kv_heads - section * a.heads_at_once);
    rest -= section * a.heads_at_once * tiles;
    kv_head = static_cast<int>(section * a.heads_at_once + rest % heads);
    tile = static_cast<int>(tiles - 1 - rest / heads);
    start = a.offsets[sequence];
    length = static_cast<int>(a.offsets[sequence + 1] - start);
    first_key = tile * keys;
    last_key = min(first_key + keys, length) - 1;
    heads_per_group = static_cast<int>(a.num_heads / a.num_kv_heads);
  }
  __device__ bool empty() const { return first_key >= length; }
};

static_assert(sizeof(Work) <= 128);

// Walks all (query head, query tile) of a block's work; products and accumulation walk in step.
struct Cursor {
  int head, last_head, step = 0;
  QueryTiles tiles;

  __device__ explicit Cursor(const Work& w)
      : head(w.kv_head * w.heads_per_group),
        last_head(head + w.heads_per_group - 1),
        tiles(w.runs, head, w.first_key, w.last_key, w.length) {}
  __device__ bool done() const { return head > last_head; }
  __device__ int tile() const { return tiles.tile(step); }
  __device__ bool masked(const Work& w) const {
    const int row = tile() * queries;
    return step < tiles.before || row < tiles.full_begin || min(row + queries, w.length) > tiles.full_end ||
           w.first_key + keys > w.length;
  }
  __device__ void advance(const Work& w) {
    if (++step < tiles.count()) return;
    step = 0;
    if (++head <= last_head) tiles = QueryTiles(w.runs, head, w.first_key, w.last_key, w.length);
  }
};

// ---- the accumulation of dQ ----------------------------------------------------------------------------------------

__device__ inline void wait_for_turn(const int* turn, int wanted) {
  int seen;
  do {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(turn) : "memory");
  } while (seen < wanted);
}
__device__ inline void pass_turn(int* turn, int next) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(turn), "r"(next) : "memory");
}

// Adds `bytes` of f32 in shared memory to global memory (or stores them), one thread for all; returns when the
// shared memory may be written again.
__device__ inline void bulk_add(float* to, uint32_t from, uint32_t bytes, bool store) {
  if (store)
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes)
                 : "memory");
  asm volatile("cp.async.bulk.commit_group;\n\tcp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ inline void bulk_finish() {
  asm volatile("cp.async.bulk.wait_group 0;\n\tfence.proxy.async;\n\tfence.acq_rel.gpu;" ::: "memory");
}

template <int D>
__device__ void accumulate(const AttentionGradientArguments<uint16_t>& a, const Work& w, uint32_t memory) {
  const int thread = threadIdx.x - product_threads;
  const uint32_t tile_sum = memory + BackwardShared<D>::d_q;
  const int64_t tile_base = slot_base(w.start, w.sequence, query_tile);
  barrier_arrive(freed, backward_threads);
  for (Cursor at(w); !at.done(); at.advance(w)) {
    const int tile = at.tile();
    const KeyTiles visitors(w.runs, at.head, tile, w.length);
    const int turn = visitors.turn_of(w.tile);
    const bool begun = turn > 0 || tile_has_sinks(a.pattern, at.head, tile, w.length);
    const int64_t slot = at.head * a.tile_slots + tile_base + tile;
    float* sum = a.d_q_sum + slot * (queries * D);
    const bool last = turn == visitors.count() - 1;
    barrier_sync(written, backward_threads);
    if (!last) {
      if (thread == 0) {
        if (turn > 0) wait_for_turn(a.turn + slot, turn);
        asm volatile("fence.proxy.async;" ::: "memory");
        bulk_add(sum, tile_sum, queries * D * 4, !begun);
      }
      __syncwarp();
      barrier_arrive(freed, backward_threads);
      if (thread == 0) {
        bulk_finish();
        pass_turn(a.turn + slot, turn + 1);
      }
      __syncwarp();
    } else {
      if (thread == 0 && turn > 0) {
        wait_for_turn(a.turn + slot, turn);
        asm volatile("fence.proxy.async;" ::: "memory");
      }
      barrier_sync(sums, sum_threads);
      uint16_t* d_q = a.d_q.data + (w.start + tile * queries) * a.d_q.stride + at.head * D;
      const int valid = min(queries, w.length - tile * queries);
#pragma unroll 2
      for (int i = thread; i < queries * D / 4; i += sum_threads) {
        const int row = i / (D / 4), column = ((i % (D / 4)) ^ ((row & 3) << 1)) * 4;
        if (row >= valid) break;
        const uint4 part = load_shared_16(tile_sum + i * 16);
        float4 before = {0, 0, 0, 0};
        if (begun) before = __ldcg(reinterpret_cast<const float4*>(sum) + i);
        const uint2 rounded = {pack_bf16((__uint_as_float(part.x) + before.x) * a.scale,
                                         (__uint_as_float(part.y) + before.y) * a.scale),
                               pack_bf16((__uint_as_float(part.z) + before.z) * a.scale,
                                         (__uint_as_float(part.w) + before.w) * a.scale)};
        *reinterpret_cast<uint2*>(d_q + row * a.d_q.stride + column) = rounded;
      }
      barrier_arrive(freed, backward_threads);
    }
  }
}

// ---- the products --------------------------------------------------------------------------------------------------

// c[32, 32] += x y^T over D: x and y are tiles of rows; `x`, `y` point at the warp's first rows.
template <int D>
__device__ __forceinline__ void multiply_rows(float (&c)[2][4][4], uint32_t x, uint32_t y, int lane) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[2][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_matrix(a[i], x + Tile<D>::by_row(lane, i * 16, 2 * step));
      load_matrix(b[i], y + Tile<D>::by_chunk(lane, i * 16, 2 * step));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) mma(c[i][j], a[i], b[j / 2][(j & 1) * 2], b[j / 2][(j & 1) * 2 + 1]);
  }
}

// c[32 keys, D / 2] += x^T y over the 64 queries: x [64, 128] from column `key`, y [64, D] from column `column`.
template <int D>
__device__ __forceinline__ void multiply_columns(float (&c)[2][D / 16][4], uint32_t x, uint32_t y, int key, int column,
                                                 int lane) {
#pragma unroll
  for (int step = 0; step < queries / 16; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      load_matrix_transposed(a[i], x + Tile<keys>::by_chunk(lane, step * 16, key / 8 + i * 2));
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
      uint32_t b[4];
      load_matrix_transposed(b, y + Tile<D>::by_row(lane, step * 16, column / 8 + j * 2));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma(c[i][2 * j], a[i], b[0], b[1]);
        mma(c[i][2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// Writes a warp's [32 keys, D / 2] of dK or dV into a tile.
template <int D>
__device__ __forceinline__ void put_key_gradient(uint32_t to, const float (&c)[2][D / 16][4], float scale, int key,
                                                 int column, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int n = 0; n < D / 16; ++n)
        store_shared(to + Tile<D>::offset(key + i * 16 + r * 8 + lane / 4, column / 8 + n) + 4 * (lane & 3),
                     pack_bf16(c[i][n][2 * r] * scale, c[i][n][2 * r + 1] * scale));
}

// The gradients of sinks in f32, for attention_sinks.cu to add to; `part` 0: dK, 1: dV.
template <int D>
__device__ __forceinline__ void put_sink_gradient(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                                  const float (&c)[2][D / 16][4], int part, int key, int column,
                                                  int lane) {
  const int64_t sinks = a.pattern.num_sinks;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t sink = w.first_key + key + i * 16 + r * 8 + lane / 4;
      if (sink >= sinks) continue;
      float* to = a.sink_base + (((w.sequence * a.num_kv_heads + w.kv_head) * sinks + sink) * 2 + part) * D + column;
#pragma unroll
      for (int n = 0; n < D / 16; ++n)
        *reinterpret_cast<float2*>(to + n * 8 + 2 * (lane & 3)) = {c[i][n][2 * r], c[i][n][2 * r + 1]};
    }
}

template <int D>
__device__ __forceinline__ void load_queries(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                             const Cursor& at, uint32_t memory, char* generic, int buffer,
                                             int thread) {
  using S = BackwardShared<D>;
  const int row = at.tile() * queries, valid = w.length - row;
  const int64_t token = w.start + row;
  load_tile<D, queries, product_threads>(memory + S::q + buffer * queries * D * 2,
                                         a.q.data + token * a.q.stride + at.head * D, a.q.stride, valid, thread);
  load_tile<D, queries, product_threads>(memory + S::d_out + buffer * queries * D * 2,
                                         a.d_out.data + token * a.d_out.stride + at.head * D, a.d_out.stride, valid,
                                         thread);
  const int r = thread & (queries - 1);
  const bool in_range = r < valid;
  if (thread < queries)
    copy_async_4(memory + S::lse + (buffer * queries + r) * 4,
                 a.lse.data + at.head * a.lse.stride + token + (in_range ? r : 0), in_range);
  else if (thread < 2 * queries)
    copy_async_4(memory + S::delta + (buffer * queries + r) * 4,
                 a.delta + at.head * a.tokens + token + (in_range ? r : 0), in_range);
  else if (thread < 3 * queries && at.masked(w))
    reinterpret_cast<RowBounds*>(generic + S::bounds)[buffer * queries + r] =
        row_bounds(w.runs, at.head, row + r, w.length);
  copy_async_commit();
}

// P and dS of one tile from the raw scores and dP, written as bf16.
template <int D>
__device__ __forceinline__ void put_scores(float (&s)[2][4][4], const float (&d_p)[2][4][4], uint32_t memory,
                                           const char* generic, const RowBounds* bounds, int buffer, float scale_log2,
                                           int first_key, int row, int key, int lane) {
  using S = BackwardShared<D>;
  const float* lse = reinterpret_cast<const float*>(generic + S::lse) + buffer * queries;
  const float* delta = reinterpret_cast<const float*>(generic + S::delta) + buffer * queries;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int q = row + i * 16 + r * 8 + lane / 4;
      const float reference = lse[q] * log2_e, shift = delta[q];
      RowBounds seen{};
      if (bounds != nullptr) seen = bounds[q];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float p[2], d_s[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          p[c] = fast_exp2(fmaf(s[i][n][2 * r + c], scale_log2, -reference));
          if (bounds != nullptr && !seen.sees(first_key + key + n * 8 + 2 * (lane & 3) + c)) p[c] = 0;
          d_s[c] = p[c] * (d_p[i][n][2 * r + c] - shift);
        }
        const uint32_t at = Tile<keys>::offset(q, key / 8 + n) + 4 * (lane & 3);
        store_shared(memory + S::p + at, pack_bf16(p[0], p[1]));
        store_shared(memory + S::d_s + at, pack_bf16(d_s[0], d_s[1]));
      }
    }
}

template <int D>
__device__ void multiply(const AttentionGradientArguments<uint16_t>& a, const Work& w, uint32_t memory,
                         char* generic) {
  using S = BackwardShared<D>;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int64_t kv = w.start + w.first_key, kv_column = w.kv_head * D;
  const int valid = w.last_key - w.first_key + 1;
  load_tile<D, keys, product_threads>(memory + S::k, a.k.data + kv * a.k.stride + kv_column, a.k.stride, valid,
                                      thread);
  load_tile<D, keys, product_threads>(memory + S::v, a.v.data + kv * a.v.stride + kv_column, a.v.stride, valid,
                                      thread);
  Cursor at(w);
  load_queries<D>(a, w, at, memory, generic, 0, thread);
  // 32 x 32 of the scores and of dQ's [64, D]: 2 x 4 warps; 32 x D/2 of dK and dV: 4 x 2 warps.
  const int row = (warp & 1) * 32, key = (warp >> 1) * 32, quarter = (warp >> 1) * (D / 4), half = (warp & 1) * (D / 2);
  float d_k[2][D / 16][4] = {}, d_v[2][D / 16][4] = {};
  const float scale_log2 = a.scale * log2_e;
  for (int buffer = 0; !at.done(); buffer ^= 1) {
    copy_async_wait<0>();
    barrier_sync(products, product_threads);
    const bool masked = at.masked(w);
    at.advance(w);
    if (!at.done()) load_queries<D>(a, w, at, memory, generic, buffer ^ 1, thread);
    const uint32_t q = memory + S::q + buffer * queries * D * 2, d_out = memory + S::d_out + buffer * queries * D * 2;
    {
      float s[2][4][4] = {}, d_p[2][4][4] = {};
      multiply_rows<D>(s, q + row * D * 2, memory + S::k + key * D * 2, lane);
      multiply_rows<D>(d_p, d_out + row * D * 2, memory + S::v + key * D * 2, lane);
      const auto* bounds = reinterpret_cast<const RowBounds*>(generic + S::bounds) + buffer * queries;
      put_scores<D>(s, d_p, memory, generic, masked ? bounds : nullptr, buffer, scale_log2, w.first_key, row, key,
                    lane);
    }
    barrier_sync(products, product_threads);
    {
      float d_q[2][D / 32][4] = {};
#pragma unroll
      for (int step = 0; step < keys / 16; ++step) {
        uint32_t x[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          load_matrix(x[i], memory + S::d_s + Tile<keys>::by_row(lane, row + i * 16, 2 * step));
#pragma unroll
        for (int j = 0; j < D / 64; ++j) {
          uint32_t y[4];
          load_matrix_transposed(y, memory + S::k + Tile<D>::by_row(lane, step * 16, quarter / 8 + j * 2));
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            mma(d_q[i][2 * j], x[i], y[0], y[1]);
            mma(d_q[i][2 * j + 1], x[i], y[2], y[3]);
          }
        }
      }
      barrier_sync(freed, backward_threads);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int n = 0; n < D / 32; ++n)
            store_shared(memory + S::d_q + 4 * gradient_offset<D>(row + i * 16 + r * 8 + lane / 4,
                                                                  quarter + n * 8 + 2 * (lane & 3)),
                         d_q[i][n][2 * r], d_q[i][n][2 * r + 1]);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      barrier_arrive(written, backward_threads);
    }
    multiply_columns<D>(d_v, memory + S::p, d_out, key, half, lane);
    multiply_columns<D>(d_k, memory + S::d_s, q, key, half, lane);
  }

  barrier_sync(products, product_threads);
  put_key_gradient<D>(memory + S::k, d_k, a.scale, key, half, lane);
  put_key_gradient<D>(memory + S::v, d_v, 1.0f, key, half, lane);
  barrier_sync(products, product_threads);
  store_tile<D, keys, product_threads>(a.d_k.data + kv * a.d_k.stride + kv_column, a.d_k.stride, memory + S::k, valid,
                                       thread);
  store_tile<D, keys, product_threads>(a.d_v.data + kv * a.d_v.stride + kv_column, a.d_v.stride, memory + S::v, valid,
                                       thread);
  if (w.first_key < a.pattern.num_sinks) {
    put_sink_gradient<D>(a, w, d_k, 0, key, half, lane);
    put_sink_gradient<D>(a, w, d_v, 1, key, half, lane);
  }
}

template <int D>
__global__ void __launch_bounds__(backward_threads, 1) backward_kernel(AttentionGradientArguments<uint16_t> a) {
  extern __shared__ __align__(128) char generic[];
  const uint32_t memory = shared_address(generic);
  if (threadIdx.x == 0) new (generic + BackwardShared<D>::work) Work(a, atomicAdd(a.ticket, 1));
  __syncthreads();
  const Work& w = *reinterpret_cast<const Work*>(generic + BackwardShared<D>::work);
  if (w.empty()) return;
  // Registers go where the accumulators are: 256 x 232 + 128 x 40 is what 384 x 168 allows.
  if (threadIdx.x < product_threads) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply<D>(a, w, memory, generic);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    accumulate<D>(a, w, memory);
  }
}

template <int D>
void launch(const AttentionGradientArguments<uint16_t>& a, cudaStream_t stream) {
  constexpr int shared = BackwardShared<D>::bytes;
  check_attention(cudaFuncSetAttribute(backward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                  "attention backward");
  const int64_t tiles = (a.max_length + keys - 1) / keys;
  const unsigned blocks = attention_blocks(tiles * a.num_kv_heads * a.sequences, "attention backward");
  backward_kernel<D><<<blocks, backward_threads, shared, stream>>>(a);
  check_attention(cudaGetLastError(), "attention backward");
}

}  // namespace

void backward_tensor_core(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? launch<64>(a, stream) : launch<128>(a, stream);
}

}  // namespace sinklora::cuda
