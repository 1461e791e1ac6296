// Attention of one query to the keys of a cache and to new ones, as the kernels for chunks
// (cached_attention.cu) and for single tokens (decode_attention.cu) share it.
//
// The keys of a query are split into runs, as many as make whole waves of blocks on an H100. A block takes a
// run for up to kMostShared query heads of a KV head, so that these read its keys and values once; some lanes
// share a key, each with elements of both halves of the head (so that RoPE stays inside a lane), and go
// through two keys at a time while the next two are on their way: scores, then one step of an online softmax
// (Milakov & Gimelshein, arXiv 1805.02867). The runs are put together by whoever reads the partial results,
// in order.
#pragma once

#include <cmath>

#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/tensor.h"

namespace sinklora::cuda {

constexpr int kSplitThreads = 128;  // of a block that goes through a run
constexpr int kKeysAtOnce = 2;      // of a lane group
constexpr int kMostDim = 256;
constexpr int kMostShared = 4;  // query heads of a block

// Runs of at most 512 keys. They follow from the number of keys and KV heads alone, so that a cache that has
// evicted nothing gives the bits of one that never does.
// In 32 bits: divisions of 64 would take microseconds of a kernel that has a few.
constexpr uint32_t kMostOfRun = 512, kWave = 768;  // kWave: blocks that an H100 runs at once, or a few less
SINKLORA_HOST_DEVICE inline uint32_t parts_of(uint32_t whole, uint32_t part) {
  return (whole + part - 1) / part;
}
SINKLORA_HOST_DEVICE inline uint32_t most_runs(int64_t keys, int64_t kv_heads) {
  const uint32_t heads = static_cast<uint32_t>(kv_heads), wave = heads < kWave ? kWave / heads : 1;
  return parts_of(static_cast<uint32_t>(keys), kMostOfRun * wave) * wave;  // never less for more keys
}
SINKLORA_HOST_DEVICE inline uint32_t run_length(int64_t keys, int64_t kv_heads) {
  constexpr uint32_t kStep = 32;  // what no block goes below
  return parts_of(parts_of(static_cast<uint32_t>(keys), most_runs(keys, kv_heads)), kStep) * kStep;
}
SINKLORA_HOST_DEVICE inline uint32_t runs_of(int64_t keys, int64_t kv_heads) {
  return parts_of(static_cast<uint32_t>(keys), run_length(keys, kv_heads));
}

// Blocks of a multiprocessor that the registers are counted for.
template <class L, int SHARED>
inline constexpr int kBlocksAtOnce = L::kPack < 4  ? 1
                                     : SHARED == 1 ? 6
                                     : SHARED == 2 ? 4
                                                   : 3;

// What all queries of a launch have in common.
template <class T>
struct Heads {
  Rows<const T> q, k, v;  // k, v: of the new tokens
  Rows<T> out;
  Rows<float> lse;
  const float *cosines, *sines;  // [P, D / 2]
  int64_t heads, kv_heads;
  int head_dim;
  float scale;
  int64_t runs = 0;          // that there is room for
  int64_t score_stride = 0;  // keys that there is room for
  float* scores = nullptr;   // [queries, Hq, score_stride], or null
  float* partial = nullptr;  // [queries, Hq, runs, D + 2]: out, maximum, sum; null: scores alone are wanted

  __host__ __device__ int64_t group() const { return heads / kv_heads; }
  __device__ float* run(int64_t query, int64_t head, int64_t index) const {
    return partial + ((query * heads + head) * runs + index) * (head_dim + 2);
  }
  __device__ float* scores_of(int64_t query, int64_t head) const {
    return scores + (query * heads + head) * score_stride;
  }
};

// ---- for launchers

inline float scale_of(int64_t head_dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
}

// Without room for results: the last four members.
template <class T>
Heads<T> heads_of(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  return {.q = rows_of<const T>(q),
          .k = rows_of<const T>(k),
          .v = rows_of<const T>(v),
          .out = rows_of<T>(out),
          .lse = rows_of<float>(lse),
          .cosines = cosines.as<float>(),
          .sines = sines.as<float>(),
          .heads = q.row_size() / head_dim,
          .kv_heads = k.row_size() / head_dim,
          .head_dim = static_cast<int>(head_dim),
          .scale = scale_of(head_dim)};
}

// The keys of one query: slots [0, count) of a cache, then new tokens from row `first_new` on.
template <class T>
struct SeenKeys {
  Rows<const T> cached_k, cached_v;
  const int32_t* ranks;            // of this KV head's slots; null: keys come after RoPE
  int64_t count, keys, first_new;  // count and keys fit into an int
};

// How a head lies in lanes: LANES of them share a key, and pack p of lane s holds elements
// (LANES p + s) N + [0, N) of each half. With N = 1 those beyond the half are 0.
template <int LANES, int EACH, int N>
struct HeadLayout {
  static constexpr int kLanes = LANES, kEach = EACH, kPack = N;
  static constexpr int kGroups = kSplitThreads / LANES;  // keys side by side
  static __device__ __forceinline__ int element(int pack, int lane) { return (pack * LANES + lane) * N; }
};

template <class L>
struct Halves {
  float values[2][L::kEach];
};
template <class T, class L>
__device__ __forceinline__ Halves<L> load_halves(const T* from, int half, int lane) {
  Halves<L> to;
#pragma unroll
  for (int p = 0; p < L::kEach / L::kPack; ++p) {
    const int at = L::element(p, lane);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (L::kPack > 1 || at < half) {
        const Pack<T, L::kPack> pack = load<L::kPack>(from + h * half + at);
        for (int i = 0; i < L::kPack; ++i) to.values[h][p * L::kPack + i] = to_float(pack.values[i]);
      } else {
        to.values[h][p * L::kPack] = 0.0f;
      }
    }
  }
  return to;
}

template <class L>
__device__ __forceinline__ void turn(Halves<L>& x, const float* cosine, const float* sine, int half,
                                     int lane) {
#pragma unroll
  for (int p = 0; p < L::kEach / L::kPack; ++p) {
    const int at = L::element(p, lane);
    if (L::kPack == 1 && at >= half) continue;
    float c[L::kPack], s[L::kPack];
    load_floats<L::kPack>(c, cosine, false, at);
    load_floats<L::kPack>(s, sine, false, at);
#pragma unroll
    for (int i = 0; i < L::kPack; ++i) {
      float& a = x.values[0][p * L::kPack + i];
      float& b = x.values[1][p * L::kPack + i];
      const float left = a * c[i] - b * s[i];
      b = b * c[i] + a * s[i];
      a = left;
    }
  }
}

template <class L>
__device__ __forceinline__ float dot(const Halves<L>& a, const Halves<L>& b) {
  float sum = 0;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int i = 0; i < L::kEach; ++i) sum += a.values[h][i] * b.values[h][i];
#pragma unroll
  for (int distance = L::kLanes / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  return sum;
}

// The share of a run in the whole: 0 when it saw nothing.
__device__ __forceinline__ float weight_of(float most, float all) {
  return most == -INFINITY ? 0.0f : expf(most - all);
}

// What the lanes of a key have seen so far, for one query head.
template <class L>
struct Online {
  Halves<L> out{};
  float most = -INFINITY, sum = 0;

  template <int KEYS>
  __device__ __forceinline__ void add(const float (&scores)[KEYS], const Halves<L> (&values)[KEYS]) {
    float next = most;
#pragma unroll
    for (int u = 0; u < KEYS; ++u) next = fmaxf(next, scores[u]);
    if (next == -INFINITY) return;  // no key yet
    const float before = expf(most - next);
    sum *= before;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < L::kEach; ++i) out.values[h][i] *= before;
#pragma unroll
    for (int u = 0; u < KEYS; ++u) {
      const float own = expf(scores[u] - next);
      sum += own;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < L::kEach; ++i) out.values[h][i] += own * values[u].values[h][i];
    }
    most = next;
  }
};

// Puts the lane groups of a block together, in order. `out`: shared memory for a head of each.
template <class L>
__device__ void store_run(float* to, const Online<L>& own, int head_dim, int group, int lane, float* out) {
  __shared__ float most[L::kGroups], sum[L::kGroups];
  const int half = head_dim / 2;
  __syncthreads();  // what was in its place has been read
#pragma unroll
  for (int p = 0; p < L::kEach / L::kPack; ++p)
#pragma unroll
    for (int i = 0; i < L::kPack; ++i) {
      const int at = L::element(p, lane) + i;
      if (at < half)
        for (int h = 0; h < 2; ++h)
          out[group * head_dim + h * half + at] = own.out.values[h][p * L::kPack + i];
    }
  if (lane == 0) most[group] = own.most, sum[group] = own.sum;
  __syncthreads();
  float all = -INFINITY, total = 0;
  for (int g = 0; g < L::kGroups; ++g) all = fmaxf(all, most[g]);
  for (int g = 0; g < L::kGroups; ++g) total += sum[g] * weight_of(most[g], all);
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kSplitThreads) {
    float value = 0;
    for (int g = 0; g < L::kGroups; ++g) value += out[g * head_dim + d] * weight_of(most[g], all);
    to[d] = value;
  }
  if (threadIdx.x == 0) to[head_dim] = all, to[head_dim + 1] = total;
}

// Keys and values of a block's steps, on their way through shared memory. A step is kKeysAtOnce keys of each
// lane group: key u of a group is base + u * groups + group, or the last of the run where there is none. A
// thread copies what it will read, so that no thread waits for another. Heads that consist of no whole packs
// are read when they are needed.
template <class T, class L>
class Pipeline {
 public:
  static constexpr int kBytes = 32 * 1024;
  static constexpr int kPacks = 2 * L::kEach / L::kPack;  // of a key or value in a lane
  static constexpr int kStages = kBytes / (2 * kKeysAtOnce * kPacks * kSplitThreads * 8);
  static constexpr int kStep = L::kGroups * kKeysAtOnce;  // keys of a block
  static constexpr bool kCopies = L::kPack > 1;
  static_assert(!kCopies || sizeof(Pack<T, L::kPack>) == 8);

  __device__ Pipeline(const Heads<T>& a, const SeenKeys<T>& seen, int64_t column, int end, char* memory)
      : a_(a),
        seen_(seen),
        column_(column),
        end_(end),
        half_(a.head_dim / 2),
        lane_(static_cast<int>(threadIdx.x) % L::kLanes),
        group_(static_cast<int>(threadIdx.x) / L::kLanes),
        memory_(shared_address(memory) + threadIdx.x * 8) {}

  // Starts to copy the step at `base`, if there is one; every call counts.
  __device__ __forceinline__ void start(int base, int stage) {
    if constexpr (kCopies) {
      if (base < end_)
#pragma unroll
        for (int u = 0; u < kKeysAtOnce; ++u) {
          const T *k, *v;
          find(base, u, k, v);
#pragma unroll
          for (int i = 0; i < kPacks; ++i) {
            const int at = i % 2 * half_ + L::element(i / 2, lane_);
            copy_async_8(slot(stage, 0, u, i), k + at);
            if (a_.partial) copy_async_8(slot(stage, 1, u, i), v + at);
          }
        }
      copy_async_commit();
    }
  }
  // The key and value of a step that started kStages - 1 calls ago or more.
  __device__ __forceinline__ void get(int base, int stage, int u, Halves<L>& key, Halves<L>& value) {
    if constexpr (kCopies) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        unpack(key, i, slot(stage, 0, u, i));
        if (a_.partial) unpack(value, i, slot(stage, 1, u, i));
      }
    } else {
      const T *k, *v;
      find(base, u, k, v);
      key = load_halves<T, L>(k, half_, lane_);
      if (a_.partial) value = load_halves<T, L>(v, half_, lane_);
    }
  }

 private:
  __device__ __forceinline__ void find(int base, int u, const T*& k, const T*& v) const {
    const int j = min(base + u * L::kGroups + group_, end_ - 1);
    const bool old = j < seen_.count;
    const int64_t row = old ? j : j - seen_.count + seen_.first_new;
    k = old ? seen_.cached_k.data + row * seen_.cached_k.stride : a_.k.data + row * a_.k.stride;
    v = old ? seen_.cached_v.data + row * seen_.cached_v.stride : a_.v.data + row * a_.v.stride;
    k += column_, v += column_;
  }
  __device__ __forceinline__ uint32_t slot(int stage, int which, int u, int pack) const {
    return memory_ + (((stage * 2 + which) * kKeysAtOnce + u) * kPacks + pack) * kSplitThreads * 8;
  }
  __device__ __forceinline__ static void unpack(Halves<L>& to, int i, uint32_t from) {
    const uint2 words = load_shared_8(from);
    Pack<T, L::kPack> pack;
    memcpy(&pack, &words, sizeof words);
#pragma unroll
    for (int e = 0; e < L::kPack; ++e) to.values[i % 2][i / 2 * L::kPack + e] = to_float(pack.values[e]);
  }

  const Heads<T>& a_;
  const SeenKeys<T>& seen_;
  int64_t column_;
  int end_, half_, lane_, group_;
  uint32_t memory_;
};

// Run `run` of the keys of query `query` of the launch, row `token` of q, for SHARED query heads from
// `first_head` on, those beyond the KV head's group left out.
template <class T, class L, int SHARED>
__device__ void attend_run(const Heads<T>& a, const SeenKeys<T>& seen, int64_t token, int64_t query,
                           int64_t kv_head, int64_t first_head, int64_t run) {
  using P = Pipeline<T, L>;
  __shared__ __align__(16) char memory[P::kBytes];
  const int lane = static_cast<int>(threadIdx.x) % L::kLanes,
            group = static_cast<int>(threadIdx.x) / L::kLanes;
  const int half = a.head_dim / 2;
  const int64_t last_head = (kv_head + 1) * a.group() - 1;
  const int length = static_cast<int>(run_length(seen.keys, a.kv_heads));
  const int begin = static_cast<int>(run) * length, end = min(begin + length, static_cast<int>(seen.keys));
  if (begin >= end) return;
  P pipeline(a, seen, kv_head * a.head_dim, end, memory);
  const auto start_first = [&] {
    for (int stage = 0; stage < P::kStages - 1; ++stage) pipeline.start(begin + stage * P::kStep, stage);
  };
  // Old keys do not wait for the new one.
  const bool early = begin + (P::kStages - 1) * P::kStep <= seen.count;
  if (early) start_first();
  wait_for_earlier();
  if (!early) start_first();
  Halves<L> q[SHARED];
  Online<L> own[SHARED];
#pragma unroll
  for (int g = 0; g < SHARED; ++g)
    q[g] = load_halves<T, L>(a.q.data + token * a.q.stride + min(first_head + g, last_head) * a.head_dim,
                             half, lane);
  // Every lane of a warp goes round as often, because the sums over lanes are steps of the whole warp. Keys
  // behind the end are the last one again, with a score of -inf.
  int stage = 0;
  for (int base = begin; base < end; base += P::kStep) {
    copy_async_wait<P::kStages - 2>();
    float scores[SHARED][kKeysAtOnce];
    Halves<L> values[kKeysAtOnce];
#pragma unroll
    for (int u = 0; u < kKeysAtOnce; ++u) {
      const int j = base + u * L::kGroups + group;
      Halves<L> k;
      pipeline.get(base, stage, u, k, values[u]);
      if (seen.ranks) {
        const int at = min(j, end - 1);
        const int64_t angle = at < seen.count ? seen.ranks[at] : at;
        turn<L>(k, a.cosines + angle * half, a.sines + angle * half, half, lane);
      }
#pragma unroll
      for (int g = 0; g < SHARED; ++g) {
        const float score = dot<L>(q[g], k) * a.scale;
        scores[g][u] = j < end ? score : -INFINITY;
        if (a.scores && lane == 0 && j < end && first_head + g <= last_head)
          a.scores_of(query, first_head + g)[j] = score;
      }
    }
    // The slot of the step before.
    pipeline.start(base + (P::kStages - 1) * P::kStep, stage == 0 ? P::kStages - 1 : stage - 1);
    stage = stage + 1 == P::kStages ? 0 : stage + 1;
    if (!a.partial) continue;
#pragma unroll
    for (int g = 0; g < SHARED; ++g) own[g].add(scores[g], values);
  }
  copy_async_wait<0>();
  if (!a.partial) return;
#pragma unroll
  for (int g = 0; g < SHARED; ++g)
    if (first_head + g <= last_head)
      store_run<L>(a.run(query, first_head + g, run), own[g], a.head_dim, group, lane,
                   reinterpret_cast<float*>(memory));
}

// Puts the runs of one query and head together: out [D] and the log-sum-exp, which every thread gets. Called
// by a whole block of any size. The order of sums is the same whatever the size: slice i of kSlices adds runs
// i, i + kSlices, ...; then slices are added in order.
template <class T>
__device__ float combine_runs(const Heads<T>& a, const float* runs, uint32_t count, T* out) {
  constexpr int kSlices = 8;
  __shared__ float parts[kSlices][kMostDim];
  const uint32_t size = static_cast<uint32_t>(a.head_dim) + 2;  // a head has fewer than 2^31 / 258 runs
  const int lane = static_cast<int>(threadIdx.x) % kWarp, threads = static_cast<int>(blockDim.x);
  float most = -INFINITY, sum = 0;
  for (uint32_t s = lane; s < count; s += kWarp) most = fmaxf(most, runs[s * size + a.head_dim]);
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, distance));
  for (uint32_t s = lane; s < count; s += kWarp)
    sum += runs[s * size + a.head_dim + 1] * weight_of(runs[s * size + a.head_dim], most);
  sum = warp_sum(sum);
  __syncthreads();  // the parts before have been read
  for (int i = static_cast<int>(threadIdx.x); i < kSlices * a.head_dim; i += threads) {
    const int slice = i / a.head_dim, d = i % a.head_dim;
    float value = 0;
#pragma unroll 4
    for (uint32_t s = slice; s < count; s += kSlices)
      value += runs[s * size + d] * weight_of(runs[s * size + a.head_dim], most);
    parts[slice][d] = value;
  }
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < a.head_dim; d += threads) {
    float value = 0;
    for (int slice = 0; slice < kSlices; ++slice) value += parts[slice][d];
    out[d] = from_float<T>(value / sum);
  }
  return most + logf(sum);
}

// Calls work(layout, shared) with constants that fit: whole packs of 8 bytes where the head has as many as
// its lanes take, and the query heads of a block.
template <class T, class Work>
void with_layout(bool packed, int64_t head_dim, int64_t group, Work&& work) {
  constexpr int kPack = sizeof(T) == 2 ? 4 : 2;
  const auto with_shared = [&]<class L>(L layout) {
    if (group == 1) return work(layout, std::integral_constant<int, 1>{});
    if (group == 2) return work(layout, std::integral_constant<int, 2>{});
    work(layout, std::integral_constant<int, kMostShared>{});
  };
  if (packed && head_dim == 64)
    with_shared(HeadLayout<8, 4, kPack>{});
  else if (packed && head_dim == 128)
    with_shared(HeadLayout<16, 4, kPack>{});
  else
    work(HeadLayout<16, kMostDim / 2 / 16, 1>{}, std::integral_constant<int, 1>{});
}

}  // namespace sinklora::cuda
