// Attention backward on Hopper's tensor cores (wgmma): dQ, dK, dV from dO, recomputing P from q, k and the
// log-sum-exp.
//   P = exp(q k^T / sqrt(D) - lse),  dP = dO v^T,  dS = P (dP - delta),  delta = sum_d dO out,
//   dV = P^T dO,  dK = dS^T q / sqrt(D),  dQ = dS k / sqrt(D).
//
// Shapes and dtypes: q, out, d_q, d_out bf16 [T, Hq * D]; k, v, d_k, d_v bf16 [T, Hkv * D]; lse, delta f32
// [Hq, T]. Work: 10 D FLOP a visible pair and query head. Bytes: q and dO (and the f32 sum of dQ, twice) once
// for every 128 keys that see them, from L2 mostly. Launch: one block an SM for (sequence, query head,
// 128 keys): two warpgroups of products, one of accumulation. K, V, dK and dV stay (the latter two in
// registers) while the block walks the query tiles of 64 rows in ascending order; q and dO are
// double-buffered through cp.async. Scores are computed transposed, [keys, queries], so that P^T and dS^T are
// register operands of dV and dK.
//
// dQ is a sum over key tiles, that is over blocks. It is the same bits on every run: each query tile has a
// turn counter, key tiles add in descending order, and the last one rounds and writes d_q. Taken in
// descending order of key tiles, blocks never wait for long: a block begins at its diagonal, one step before
// the next one needs it. The accumulation warps do all of that (wait, bulk add in L2, release) beside the
// products. Blocks draw their work by ticket, so that what a block waits for has always begun.
//
// Query heads that share a KV head add up their dK and dV in f32 by turns too, in the order of the heads. One
// block for all of them would spare that, but its blocks drift apart from head to head, and what they share
// (q, dO, the sums of dQ, of 4 heads and not of one) no longer fits the L2 cache.
//
// Sinks outside a row's own group are not visited here: attention_sinks.cu leaves their dS, and the block at
// a query tile's diagonal multiplies it into d_q. Ideas: FlashAttention-2's tiling (Dao, arXiv 2307.08691);
// FlashAttention-3's deterministic order, shortest first.
#include <cmath>
#include <new>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace sinklora::cuda {
// Named, so that passes for devices whose kernels are empty find nothing unused.
namespace hopper_backward {

inline constexpr int product_threads = 256, sum_threads = 128,
                     backward_threads = product_threads + sum_threads;
inline constexpr int queries = query_tile, keys = key_tile, sinks_at_once = 64;
// Named barriers: d_q tile written; d_q tile free again; among the products' warps; among the accumulation's.
inline constexpr int written = 1, freed = 2, products = 3, sums = 4;

template <int D>
struct BackwardShared {  // byte offsets
  static constexpr uint32_t k = 0, v = k + keys * D * 2;
  static constexpr uint32_t q = v + keys * D * 2;                       // [2]
  static constexpr uint32_t d_out = q + 2 * queries * D * 2;            // [2]
  static constexpr uint32_t d_s = d_out + 2 * queries * D * 2;          // [128 keys, 64]
  static constexpr uint32_t sink_k = d_s + queries * keys * 2;          // [64, D]
  static constexpr uint32_t sink_d_s = sink_k + sinks_at_once * D * 2;  // [2][64, 64]
  static constexpr uint32_t d_q = sink_d_s + 2 * queries * 128;         // f32
  static constexpr uint32_t lse = d_q + queries * D * 4;                // [2][64]
  static constexpr uint32_t delta = lse + 2 * queries * 4;
  static constexpr uint32_t bounds = delta + 2 * queries * 4;
  static constexpr uint32_t work = bounds + 2 * queries * 16;
  static constexpr uint32_t bytes = work + 128 + 1024;  // panels begin at multiples of 1024
};

// One item of work: what a block is to do. It lies in shared memory: registers are short.
struct Work {
  AttentionPattern runs;  // the pattern without sinks
  int64_t sequence, start;
  int head, kv_head, tile, length, first_key, last_key;
  int part, parts;  // this head among those of the KV head

  __device__ Work(const AttentionGradientArguments<uint16_t>& a, int64_t item) : runs(a.pattern) {
    runs.num_sinks = 0;
    const int64_t slots = slots_of(a, keys), section = item / (a.heads_at_once * slots);
    const int64_t heads = min(a.heads_at_once, a.num_heads - section * a.heads_at_once);
    const int64_t rest = item - section * a.heads_at_once * slots;
    const SlotTile at(a.offsets, a.sequences, slots - 1 - rest / heads, keys);
    head = static_cast<int>(section * a.heads_at_once + rest % heads);
    parts = static_cast<int>(a.num_heads / a.num_kv_heads);
    kv_head = head / parts;
    part = head % parts;
    sequence = at.sequence, start = at.start, length = at.length;
    first_key = at.first;
    tile = first_key / keys;
    last_key = min(first_key + keys, length) - 1;
  }
  __device__ bool empty() const { return first_key >= length; }
};

static_assert(sizeof(Work) <= 128);

// Walks the query tiles of a block's work; products and accumulation walk in step.
struct Cursor {
  int step = 0;
  QueryTiles tiles;

  __device__ explicit Cursor(const Work& w) : tiles(w.runs, w.head, w.first_key, w.last_key, w.length) {}
  __device__ bool done() const { return step == tiles.count(); }
  __device__ int tile() const { return tiles.tile(step); }
  __device__ bool masked(const Work& w) const {
    const int row = tile() * queries;
    return step < tiles.before || row < tiles.full_begin || min(row + queries, w.length) > tiles.full_end ||
           w.first_key + keys > w.length;
  }
  // Whether this block adds the sinks' part of the tile's d_q: the one at the diagonal does.
  __device__ bool at_sinks(const AttentionGradientArguments<uint16_t>& a, const Work& w) const {
    return a.pattern.num_sinks > 0 && tile() * queries / keys == w.tile &&
           tile_has_sinks(a.pattern, w.head, tile(), w.length);
  }
  __device__ void advance() { ++step; }
};

// ---- the accumulation of dQ ----

__device__ inline void wait_for_turn(const int* turn, int wanted) {
  int seen;
  do {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(turn) : "memory");
  } while (seen < wanted);
}
__device__ inline void pass_turn(int* turn, int next) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(turn), "r"(next) : "memory");
}

// Adds `bytes` of f32 in shared memory to global memory (or stores them), one thread for all; returns when
// the shared memory may be written again.
__device__ inline void bulk_add(float* to, uint32_t from, uint32_t bytes, bool store) {
  if (store)
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(from), "r"(bytes)
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
  for (Cursor at(w); !at.done(); at.advance()) {
    const int tile = at.tile();
    const KeyTiles visitors(w.runs, w.head, tile, w.length);
    const int turn = visitors.turn_of(w.tile);
    const bool begun = turn > 0;
    const int64_t slot = w.head * a.tile_slots + tile_base + tile;
    float* sum = a.d_q_sum + slot * (queries * D);
    const bool last = turn == visitors.count() - 1;
    barrier_sync(written, backward_threads);
    if (!last) {
      if (thread == 0) {
        if (begun) wait_for_turn(a.turn + slot, turn);
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
      if (thread == 0 && begun) {
        wait_for_turn(a.turn + slot, turn);
        asm volatile("fence.proxy.async;" ::: "memory");
      }
      __syncwarp();
      barrier_sync(sums, sum_threads);
      uint16_t* d_q = a.d_q.data + (w.start + tile * queries) * a.d_q.stride + w.head * D;
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
      __syncwarp();
      barrier_arrive(freed, backward_threads);
    }
  }
}

// ---- the products ----

// Reads panels of ROWS rows and D columns.
template <int ROWS, int D>
__device__ __forceinline__ void load_panels(uint32_t to, const uint16_t* from, int64_t stride, int valid,
                                            int thread) {
#pragma unroll
  for (int panel = 0; panel < D / 64; ++panel)
    load_tile<64, ROWS, product_threads>(to + panel * ROWS * 128, from + panel * 64, stride, valid, thread);
}

// k of up to 64 sinks from `sink` on.
template <int D>
__device__ __forceinline__ void load_sink_keys(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                               uint32_t memory, int sink, int thread) {
  const int valid = min(static_cast<int>(a.pattern.num_sinks), w.length) - sink;
  load_panels<sinks_at_once, D>(memory + BackwardShared<D>::sink_k,
                                a.k.data + (w.start + sink) * a.k.stride + w.kv_head * D, a.k.stride, valid,
                                thread);
}
// dS of a query tile's pairs with up to 64 sinks from `sink` on.
__device__ __forceinline__ void load_sink_scores(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                                 int tile, uint32_t to, int sink, int thread) {
  const int64_t slot = w.head * a.tile_slots + slot_base(w.start, w.sequence, query_tile) + tile;
  const uint16_t* from = a.sink_d_s + slot * queries * a.sink_columns + sink;
  const int chunks = min(static_cast<int>(a.sink_columns), sinks_at_once) / 8;
  for (int i = thread; i < queries * chunks; i += product_threads)
    copy_async_16(to + Tile<64>::offset(i / chunks, i % chunks),
                  from + i / chunks * a.sink_columns + i % chunks * 8, true);
}

template <int D>
__device__ __forceinline__ void load_queries(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                             const Cursor& at, uint32_t memory, char* generic, int buffer,
                                             int thread) {
  using S = BackwardShared<D>;
  const int row = at.tile() * queries, valid = w.length - row;
  const int64_t token = w.start + row;
  load_panels<queries, D>(memory + S::q + buffer * queries * D * 2,
                          a.q.data + token * a.q.stride + w.head * D, a.q.stride, valid, thread);
  load_panels<queries, D>(memory + S::d_out + buffer * queries * D * 2,
                          a.d_out.data + token * a.d_out.stride + w.head * D, a.d_out.stride, valid, thread);
  const int r = thread & (queries - 1);
  const bool in_range = r < valid;
  if (thread < queries)
    copy_async_4(memory + S::lse + (buffer * queries + r) * 4,
                 a.lse.data + w.head * a.lse.stride + token + (in_range ? r : 0), in_range);
  else if (thread < 2 * queries)
    copy_async_4(memory + S::delta + (buffer * queries + r) * 4,
                 a.delta + w.head * a.tokens + token + (in_range ? r : 0), in_range);
  else if (thread < 3 * queries && at.masked(w))
    reinterpret_cast<RowBounds*>(generic + S::bounds)[buffer * queries + r] =
        row_bounds(w.runs, w.head, row + r, w.length);
  if (at.at_sinks(a, w))
    load_sink_scores(a, w, at.tile(), memory + S::sink_d_s + buffer * queries * 128, 0, thread);
  copy_async_commit();
}

// c[64, 64] = x y^T over D: 64 rows of x's panels (X_ROWS rows each), all of y's.
template <int D, int X_ROWS>
__device__ __forceinline__ void multiply_rows(float (&c)[8][4], uint32_t x, uint32_t y) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    wgmma<0, 0>(c, matrix_descriptor(x + step / 4 * X_ROWS * 128 + step % 4 * 32, 0),
                matrix_descriptor(y + step / 4 * queries * 128 + step % 4 * 32, 0), step > 0);
  wgmma_commit();
}

// c[64 keys, D] += x y over the 64 queries: x in registers, y's panels [64, D].
template <int D>
__device__ __forceinline__ void multiply_columns(float (&c)[D / 8][4], const uint32_t (&x)[4][4],
                                                 uint32_t y) {
#pragma unroll
  for (int step = 0; step < queries / 16; ++step)
    wgmma<1>(c, x[step], matrix_descriptor(y + step * 16 * 128, queries * 128), 1);
  wgmma_commit();
}

// s becomes P from raw scores: its columns are queries, its rows keys, the lane's first being `key`.
template <int D>
__device__ __forceinline__ void to_probabilities(float (&s)[8][4], const char* generic,
                                                 const RowBounds* bounds, int buffer, float scale_log2,
                                                 int key, int lane) {
  const auto* lse =
      reinterpret_cast<const float2*>(generic + BackwardShared<D>::lse) + buffer * (queries / 2);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 reference = lse[n * 4 + (lane & 3)];
#pragma unroll
    for (int c = 0; c < 4; ++c)
      s[n][c] = fast_exp2(fmaf(s[n][c], scale_log2, -log2_e * (c & 1 ? reference.y : reference.x)));
    if (bounds != nullptr) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const RowBounds seen = bounds[n * 8 + 2 * (lane & 3) + c];
        if (!seen.sees(key)) s[n][c] = 0;
        if (!seen.sees(key + 8)) s[n][2 + c] = 0;
      }
    }
  }
}

template <int STEPS, int N>
__device__ __forceinline__ void multiply_sinks(float (&d_q)[N][4], uint32_t d_s, uint32_t k) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < STEPS; ++step)
    wgmma<0, 1>(d_q, matrix_descriptor(d_s + step * 32, 0), matrix_descriptor(k + step * 16 * 128, 0), 1);
  wgmma_commit();
  wgmma_wait<0>();
}

// d_q[64, D / 2] += dS k over the sinks outside the run; the first 64 of them have been loaded.
template <int D>
__device__ __forceinline__ void add_sinks(float (&d_q)[D / 16][4],
                                          const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                          int tile, uint32_t memory, uint32_t d_s, int group, int thread) {
  const uint32_t k = memory + BackwardShared<D>::sink_k + group * (D == 128 ? sinks_at_once * 128 : 64);
  const int columns = static_cast<int>(a.sink_columns);
  for (int sink = 0;;) {
    if (columns == 16)
      multiply_sinks<1>(d_q, d_s, k);
    else
      multiply_sinks<sinks_at_once / 16>(d_q, d_s, k);
    if (columns <= sinks_at_once) return;
    // More than 64: the next ones, and in the end the first again for the tile to come.
    sink = sink + sinks_at_once < columns ? sink + sinks_at_once : 0;
    barrier_sync(products, product_threads);
    load_sink_keys<D>(a, w, memory, sink, thread);
    if (sink > 0) load_sink_scores(a, w, tile, d_s, sink, thread);
    copy_async_commit();
    copy_async_wait<0>();
    fence_for_async_reads();
    barrier_sync(products, product_threads);
    if (sink == 0) return;
  }
}

// A 64 x 64 accumulator, rounded, as the register operand of the next product.
__device__ __forceinline__ void to_operand(uint32_t (&x)[4][4], const float (&c)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    x[n / 2][(n & 1) * 2] = pack_bf16(c[n][0], c[n][1]);
    x[n / 2][(n & 1) * 2 + 1] = pack_bf16(c[n][2], c[n][3]);
  }
}

// Writes a warp's [16 keys, D] of dK or dV into panels; `row` is the lane's first.
template <int D>
__device__ __forceinline__ void put_key_gradient(uint32_t to, const float (&c)[D / 8][4], float scale,
                                                 int row, int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      store_shared(to + n / 8 * keys * 128 + Tile<64>::offset(row + r * 8, n % 8) + 4 * (lane & 3),
                   pack_bf16(c[n][2 * r] * scale, c[n][2 * r + 1] * scale));
}

// The gradients of sinks in f32, for attention_sinks.cu to add to; `part` 0: dK, 1: dV.
template <int D>
__device__ __forceinline__ void put_sink_gradient(const AttentionGradientArguments<uint16_t>& a,
                                                  const Work& w, const float (&c)[D / 8][4], int part,
                                                  int row, int lane) {
  const int64_t sinks = a.pattern.num_sinks;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t sink = w.first_key + row + r * 8;
    if (sink >= sinks) continue;
    float* to = a.sink_base + (((w.sequence * a.num_kv_heads + w.kv_head) * sinks + sink) * 2 + part) * D;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<float2*>(to + n * 8 + 2 * (lane & 3)) = {c[n][2 * r], c[n][2 * r + 1]};
  }
}

// Adds the sums of the heads before this one to dK and dV; leaves them to the next head, unless this is the
// last.
template <int D>
__device__ bool add_heads(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                          float (&d_k)[D / 8][4], float (&d_v)[D / 8][4], int thread) {
  const int64_t slot = w.kv_head * a.key_slots + slot_base(w.start, w.sequence, key_tile) + w.tile;
  auto* const sums = reinterpret_cast<float4*>(a.key_sum + slot * (2 * keys * D)) + thread;
  const auto add = [&](float(&c)[4], int n) {
    const float4 before = __ldcg(sums + n * product_threads);
    c[0] += before.x, c[1] += before.y, c[2] += before.z, c[3] += before.w;
  };
  if (w.part > 0) {
    if (thread == 0) wait_for_turn(a.key_turn + slot, w.part);
    barrier_sync(products, product_threads);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) add(d_k[n], n), add(d_v[n], D / 8 + n);
  }
  if (w.part + 1 == w.parts) return true;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    __stcg(sums + n * product_threads, {d_k[n][0], d_k[n][1], d_k[n][2], d_k[n][3]});
    __stcg(sums + (D / 8 + n) * product_threads, {d_v[n][0], d_v[n][1], d_v[n][2], d_v[n][3]});
  }
  __threadfence();
  barrier_sync(products, product_threads);
  if (thread == 0) pass_turn(a.key_turn + slot, w.part + 1);
  return false;
}

template <int D>
__device__ void multiply(const AttentionGradientArguments<uint16_t>& a, const Work& w, uint32_t memory,
                         char* generic) {
  using S = BackwardShared<D>;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, group = thread >> 7;
  const int64_t kv = w.start + w.first_key, kv_column = w.kv_head * D;
  const int valid = w.last_key - w.first_key + 1;
  load_panels<keys, D>(memory + S::k, a.k.data + kv * a.k.stride + kv_column, a.k.stride, valid, thread);
  load_panels<keys, D>(memory + S::v, a.v.data + kv * a.v.stride + kv_column, a.v.stride, valid, thread);
  if (a.pattern.num_sinks > 0) load_sink_keys<D>(a, w, memory, 0, thread);
  Cursor at(w);
  load_queries<D>(a, w, at, memory, generic, 0, thread);
  // A warpgroup has 64 of the keys, and for dQ half of the D columns.
  const uint32_t half_rows = group * 64 * 128;
  const int row = warp * 16 + lane / 4;  // the lane's first key
  float d_k[D / 8][4] = {}, d_v[D / 8][4] = {};
  const float scale_log2 = a.scale * log2_e;
  for (int buffer = 0; !at.done(); buffer ^= 1) {
    copy_async_wait<0>();
    fence_for_async_reads();
    barrier_sync(products, product_threads);
    const bool masked = at.masked(w), at_sinks = at.at_sinks(a, w);
    const int tile = at.tile();
    at.advance();
    if (!at.done()) load_queries<D>(a, w, at, memory, generic, buffer ^ 1, thread);
    const uint32_t q = memory + S::q + buffer * queries * D * 2,
                   d_out = memory + S::d_out + buffer * queries * D * 2;
    const auto* delta = reinterpret_cast<const float2*>(generic + S::delta) + buffer * (queries / 2);
    const auto* bounds = reinterpret_cast<const RowBounds*>(generic + S::bounds) + buffer * queries;

    float s[8][4], d_p[8][4];
    wgmma_fence();
    multiply_rows<D, keys>(s, memory + S::k + half_rows, q);
    multiply_rows<D, keys>(d_p, memory + S::v + half_rows, d_out);
    wgmma_wait<1>();
    to_probabilities<D>(s, generic, masked ? bounds : nullptr, buffer, scale_log2, w.first_key + row, lane);
    uint32_t p[4][4], d_s[4][4];
    to_operand(p, s);
    wgmma_wait<0>();
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 shift = delta[n * 4 + (lane & 3)];
#pragma unroll
      for (int c = 0; c < 4; ++c) d_p[n][c] = s[n][c] * (d_p[n][c] - (c & 1 ? shift.y : shift.x));
    }
    to_operand(d_s, d_p);
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        store_shared(memory + S::d_s + Tile<64>::offset(row + r * 8, n) + 4 * (lane & 3),
                     d_s[n / 2][(n & 1) * 2 + r]);
    wgmma_fence();
    multiply_columns<D>(d_v, p, d_out);
    multiply_columns<D>(d_k, d_s, q);
    fence_for_async_reads();
    barrier_sync(products, product_threads);

    float d_q[D / 16][4];
#pragma unroll
    for (int step = 0; step < keys / 16; ++step)
      wgmma<1, 1>(
          d_q, matrix_descriptor(memory + S::d_s + step * 16 * 128, 0),
          matrix_descriptor(memory + S::k + group * (D == 128 ? keys * 128 : 64) + step * 16 * 128, 0),
          step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    if (at_sinks)
      add_sinks<D>(d_q, a, w, tile, memory, memory + S::sink_d_s + buffer * queries * 128, group, thread);
    barrier_sync(freed, backward_threads);
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int n = 0; n < D / 16; ++n)
        store_shared(memory + S::d_q +
                         4 * gradient_offset<D>(row % 64 + r * 8, group * (D / 2) + n * 8 + 2 * (lane & 3)),
                     d_q[n][2 * r], d_q[n][2 * r + 1]);
    fence_for_async_reads();
    barrier_arrive(written, backward_threads);
  }

  if (w.parts > 1 && !add_heads<D>(a, w, d_k, d_v, thread)) return;
  barrier_sync(products, product_threads);
  put_key_gradient<D>(memory + S::k, d_k, a.scale, row, lane);
  put_key_gradient<D>(memory + S::v, d_v, 1.0f, row, lane);
  barrier_sync(products, product_threads);
#pragma unroll
  for (int panel = 0; panel < D / 64; ++panel) {
    const int64_t column = kv_column + panel * 64;
    store_tile<64, keys, product_threads>(a.d_k.data + kv * a.d_k.stride + column, a.d_k.stride,
                                          memory + S::k + panel * keys * 128, valid, thread);
    store_tile<64, keys, product_threads>(a.d_v.data + kv * a.d_v.stride + column, a.d_v.stride,
                                          memory + S::v + panel * keys * 128, valid, thread);
  }
  if (w.first_key < a.pattern.num_sinks) {
    put_sink_gradient<D>(a, w, d_k, 0, row, lane);
    put_sink_gradient<D>(a, w, d_v, 1, row, lane);
  }
}

template <int D>
__global__ void __launch_bounds__(backward_threads, 1)
    backward_kernel(AttentionGradientArguments<uint16_t> a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char unaligned[];
  const uint32_t memory = (shared_address(unaligned) + 1023) & ~1023u;
  char* generic = unaligned + (memory - shared_address(unaligned));
  if (threadIdx.x < 32) {
    const int ticket = threadIdx.x == 0 ? atomicAdd(a.ticket, 1) : 0;
    const Work drawn(a, __shfl_sync(~0u, ticket, 0));
    if (threadIdx.x == 0) new (generic + BackwardShared<D>::work) Work(drawn);
  }
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
#else
  __trap();  // attention.cpp refuses other devices
#endif
}

template <int D>
void launch(const AttentionGradientArguments<uint16_t>& a, cudaStream_t stream) {
  constexpr int shared = BackwardShared<D>::bytes;
  check_attention(
      cudaFuncSetAttribute(backward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
      "attention backward");
  const unsigned blocks = attention_blocks(slots_of(a, keys) * a.num_heads, "attention backward");
  backward_kernel<D><<<blocks, backward_threads, shared, stream>>>(a);
  check_attention(cudaGetLastError(), "attention backward");
}

}  // namespace hopper_backward

void backward_tensor_core(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim,
                          cudaStream_t stream) {
  head_dim == 64 ? hopper_backward::launch<64>(a, stream) : hopper_backward::launch<128>(a, stream);
}

}  // namespace sinklora::cuda
