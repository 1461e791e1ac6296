// The blocks of attention_backward.cu beside their products: what each has to do, what lies where in its shared
// memory, how query tiles come and how dQ goes.
#pragma once

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace sinklora::cuda::hopper_backward {

inline constexpr int product_threads = 256, sum_threads = 32, load_threads = 64,
                     backward_threads = product_threads + 2 * sum_threads + load_threads;
inline constexpr int queries = query_tile, keys = key_tile, sinks_at_once = 64;
// Named barriers. Among the products' warps; and, + step % 2: d_q of a step is written; its place is free
// again; a query tile's q is there; dO and the rest of it are; its buffer is free.
inline constexpr int products = 1, written = 2, freed = 4, q_full = 6, d_out_full = 8, empty = 10;

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
  static constexpr uint32_t seen = delta + 2 * queries * 4;  // [2][128 keys]: a bit for each query
  static constexpr uint32_t work = seen + 2 * keys * 8;
  static constexpr uint32_t steps = work + 192;         // [4]: StepNote
  static constexpr uint32_t bytes = steps + 32 + 1024;  // panels begin at multiples of 1024
};

// One item of work: what a block is to do. It lies in shared memory: registers are short.
struct Work {
  AttentionPattern runs;  // the pattern without sinks
  int64_t sequence, start;
  int64_t query_slot, key_slot;  // where the sums of d_q, d_k and d_v of this sequence and head begin
  int head, kv_head, tile, length, first_key, last_key;
  int part, parts;                                 // this head among those of the KV head
  int before, begin, steps, full_begin, full_end;  // of QueryTiles

  __device__ Work(const AttentionGradientArguments<uint16_t>& a, int64_t item) : runs(a.pattern) {
    runs.num_sinks = 0;
    const int64_t slots = slots_of(a, keys), section = item / (a.heads_at_once * slots);
    const int64_t heads = min(a.heads_at_once, a.num_heads - section * a.heads_at_once);
    const int64_t rest = item - section * a.heads_at_once * slots;
    const SlotTile at(a.offsets, a.sequences, rest / heads, keys);
    head = static_cast<int>(section * a.heads_at_once + rest % heads);
    parts = static_cast<int>(a.num_heads / a.num_kv_heads);
    kv_head = head / parts;
    part = head % parts;
    sequence = at.sequence, start = at.start, length = at.length;
    query_slot = head * a.tile_slots + slot_base(start, sequence, queries);
    key_slot = kv_head * a.key_slots + slot_base(start, sequence, keys);
    first_key = at.first;
    tile = first_key / keys;
    last_key = min(first_key + keys, length) - 1;
    if (empty()) return;
    const QueryTiles tiles(runs, head, first_key, last_key, length);
    before = tiles.before, begin = tiles.begin, steps = tiles.count();
    full_begin = tiles.full_begin, full_end = tiles.full_end;
  }
  __device__ bool empty() const { return first_key >= length; }

  // The walk over the query tiles, the last one first.
  __device__ int tile_at(int step) const {
    const int i = steps - 1 - step;
    return i < before ? i : begin + i - before;
  }
  __device__ bool masked(int step) const {
    const int row = tile_at(step) * queries;
    return steps - 1 - step < before || row < full_begin || min(row + queries, length) > full_end ||
           first_key + keys > length;
  }
  // Whether this block adds the sinks' part of the tile's d_q: the one at the diagonal does.
  __device__ bool adds_sinks(const AttentionGradientArguments<uint16_t>& a, int step) const {
    const int query = tile_at(step);
    return a.pattern.num_sinks > 0 && query * queries / keys == tile &&
           tile_has_sinks(a.pattern, head, query, length);
  }
};

static_assert(sizeof(Work) <= 192);

// What the others ask the loading warps about a step. Four of them, for the adding warps are up to two steps
// late.
struct StepNote {
  int turn;  // when this block's part of d_q is added
  int what;  // the query tile's index times 16, and flags
  static constexpr int masked = 1, adds_sinks = 2, last_step = 4, completes_d_q = 8, tile_unit = 16;
  __device__ bool is(int flag) const { return (what & flag) != 0; }
  __device__ int tile() const { return what / tile_unit; }
};
template <int D>
__device__ inline StepNote* notes(char* generic) {
  return reinterpret_cast<StepNote*>(generic + BackwardShared<D>::steps);
}

// ---- the sums of dQ ----

__device__ inline void wait_for_turn(const int* turn, int wanted) {
  int seen;
  do {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(turn) : "memory");
  } while (seen < wanted);
}
__device__ inline void pass_turn(int* turn, int next) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(turn), "r"(next) : "memory");
}

// Adds `bytes` of f32 in shared memory to global memory (or stores them), one thread for all.
__device__ inline void bulk_add(float* to, uint32_t from, uint32_t bytes, bool store) {
  if (store)
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until the shared memory may be written again.
__device__ inline void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ inline void bulk_finish() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// ---- what comes and goes beside the products ----

// k of up to 64 sinks from `sink` on. Rolled up: the products call it where registers are short.
template <int D>
__device__ __forceinline__ void load_sink_keys(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                               uint32_t memory, int sink, int thread) {
  const int valid = min(static_cast<int>(a.pattern.num_sinks), w.length) - sink;
  const uint16_t* from = a.k.data + (w.start + sink) * a.k.stride + w.kv_head * D + thread % (D / 8) * 8;
  const int chunk = thread % (D / 8);
#pragma unroll 1
  for (int row = thread / (D / 8); row < sinks_at_once; row += product_threads / (D / 8))
    copy_async_16(memory + BackwardShared<D>::sink_k + chunk / 8 * sinks_at_once * 128 +
                      Tile<64>::offset(row, chunk % 8),
                  from + row * a.k.stride, row < valid);
}
// dS of a query tile's pairs with up to 64 sinks from `sink` on.
template <int THREADS>
__device__ __forceinline__ void load_sink_scores(const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                                 int tile, uint32_t to, int sink, int thread) {
  const uint16_t* from = a.sink_d_s + (w.query_slot + tile) * queries * a.sink_columns + sink;
  const int chunks = min(static_cast<int>(a.sink_columns), sinks_at_once) / 8;
#pragma unroll 1
  for (int i = thread; i < queries * chunks; i += THREADS)
    copy_async_16(to + Tile<64>::offset(i / chunks, i % chunks),
                  from + i / chunks * a.sink_columns + i % chunks * 8, true);
}

// The numbers from `first` on that are in `range`, a bit for each of 64.
__device__ inline uint64_t bits_of(Range range, int first) {
  const auto below = [first](int64_t end) {
    const int n = static_cast<int>(end) - first;
    return n <= 0 ? 0 : n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
  };
  return below(range.end) & ~below(range.begin);
}

// Two warps: the query tiles, each as soon as its buffer is free. One more than there are: the products wait
// and release without asking which step is the last.
template <int D>
__device__ void load_all(const AttentionGradientArguments<uint16_t>& a, const Work& w, uint32_t memory,
                         char* generic, int thread) {
  using S = BackwardShared<D>;
  for (int step = 0; step <= w.steps; ++step) {
    const int buffer = step & 1;
    const bool more = step < w.steps;
    const int tile = more ? w.tile_at(step) : 0, row = tile * queries, valid = w.length - row;
    const int64_t token = w.start + row;
    const uint16_t* q = a.q.data + token * a.q.stride + w.head * D;
    const uint16_t* d_out = a.d_out.data + token * a.d_out.stride + w.head * D;
    const int r = thread < valid ? thread : 0;
    const float* lse = a.lse.data + w.head * a.lse.stride + token + r;
    const float* delta = a.delta + w.head * a.tokens + token + r;
    if (step > 0) barrier_sync(empty + buffer, product_threads + load_threads);
    if (more)
      load_panels<load_threads, queries, D>(memory + S::q + buffer * queries * D * 2, queries * 128, q,
                                            a.q.stride, valid, thread);
    copy_async_commit();
    bool sinks = false;
    if (more) {
      load_panels<load_threads, queries, D>(memory + S::d_out + buffer * queries * D * 2, queries * 128,
                                            d_out, a.d_out.stride, valid, thread);
      copy_async_4(memory + S::lse + (buffer * queries + thread) * 4, lse, thread < valid);
      copy_async_4(memory + S::delta + (buffer * queries + thread) * 4, delta, thread < valid);
      sinks = w.adds_sinks(a, step);
      if (sinks)
        load_sink_scores<load_threads>(a, w, tile, memory + S::sink_d_s + buffer * queries * 128, 0, thread);
    }
    copy_async_commit();
    copy_async_wait<1>();
    fence_for_async_reads();
    barrier_arrive(q_full + buffer, product_threads + load_threads);
    if (more) {
      const bool masked = w.masked(step);
      if (masked)
        for (int i = thread; i < keys; i += load_threads) {
          uint64_t by = 0;
          if (w.first_key + i < w.length) {
            const RangePair seeing = query_ranges(w.runs, w.head, w.first_key + i, w.length);
            by = bits_of(seeing.first, row) | bits_of(seeing.second, row);
          }
          reinterpret_cast<uint64_t*>(generic + S::seen)[buffer * keys + i] = by;
        }
      if (thread == 0) {
        using N = StepNote;
        const KeyTiles visitors(w.runs, w.head, tile, w.length);
        const int turn = visitors.turn_of(w.tile);
        notes<D>(generic)[step & 3] = {turn, tile * N::tile_unit + (masked ? N::masked : 0) +
                                                 (sinks ? N::adds_sinks : 0) +
                                                 (step + 1 == w.steps ? N::last_step : 0) +
                                                 (turn + 1 == visitors.count() ? N::completes_d_q : 0)};
      }
    }
    copy_async_wait<0>();
    fence_for_async_reads();
    barrier_arrive(d_out_full + buffer, product_threads + load_threads);
  }
}

// Two warps, a step each in turn, the first lane alone: add to the sums of dQ what the products have put into
// shared memory. (Where this block is the last to add, they do that in registers.)
template <int D>
__device__ void add_all(const AttentionGradientArguments<uint16_t>& a, const Work& w, uint32_t memory,
                        char* generic, int warp, int lane) {
  if (warp == 1) barrier_arrive(freed + 1, product_threads + sum_threads);
  for (int step = warp; step < w.steps; step += 2) {
    const int64_t slot = w.query_slot + w.tile_at(step);
    barrier_sync(written + warp, product_threads + sum_threads);
    const StepNote note = notes<D>(generic)[step & 3];
    const int turn = note.turn;
    const bool adds = lane == 0 && !note.is(StepNote::completes_d_q);
    if (adds) {
      if (turn > 0) wait_for_turn(a.turn + slot, turn);
      asm volatile("fence.proxy.async.global;" ::: "memory");
      bulk_add(a.d_q_sum + slot * (queries * D), memory + BackwardShared<D>::d_q, queries * D * 4, turn == 0);
      bulk_wait_read();
    }
    __syncwarp();
    barrier_arrive(freed + warp, product_threads + sum_threads);
    if (adds) {
      bulk_finish();
      pass_turn(a.turn + slot, turn + 1);
    }
    __syncwarp();
  }
}

}  // namespace sinklora::cuda::hopper_backward
