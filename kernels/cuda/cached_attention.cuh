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
#include "kernels/tensor.h"

namespace sinklora::cuda {

constexpr int kSplitThreads = 128;  // of a block that goes through a run
constexpr int kKeysAtOnce = 2;      // of a lane group
constexpr int kMostDim = 256;
constexpr int kMostShared = 4;  // query heads of a block

template <class T>
Rows<T> rows_of(const Tensor& t) {
  return {t.as<T>(), t.row_stride};
}

// Runs of at most 512 keys. They follow from the number of keys and KV heads alone, so that a cache that has
// evicted nothing gives the bits of one that never does.
constexpr int64_t kMostOfRun = 512, kWave = 768;  // kWave: blocks that an H100 runs at once, or a few more
SINKLORA_HOST_DEVICE inline int64_t most_runs(int64_t keys, int64_t kv_heads) {
  const int64_t wave = kWave / kv_heads > 1 ? kWave / kv_heads : 1;
  return (keys + kMostOfRun * wave - 1) / (kMostOfRun * wave) * wave;  // never less for more keys
}
SINKLORA_HOST_DEVICE inline int64_t run_length(int64_t keys, int64_t kv_heads) {
  constexpr int64_t kStep = 32;  // what no block goes below
  const int64_t runs = most_runs(keys, kv_heads), length = (keys + runs - 1) / runs;
  return (length + kStep - 1) / kStep * kStep;
}
SINKLORA_HOST_DEVICE inline int64_t runs_of(int64_t keys, int64_t kv_heads) {
  const int64_t length = run_length(keys, kv_heads);
  return (keys + length - 1) / length;
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
  int64_t runs;          // that there is room for
  int64_t score_stride;  // keys that there is room for
  float* scores;         // [queries, Hq, score_stride], or null
  float* partial;        // [queries, Hq, runs, D + 2]: out, maximum, sum; null: scores alone are wanted

  __host__ __device__ int64_t group() const { return heads / kv_heads; }
  __device__ float* run(int64_t query, int64_t head, int64_t index) const {
    return partial + ((query * heads + head) * runs + index) * (head_dim + 2);
  }
  __device__ float* scores_of(int64_t query, int64_t head) const {
    return scores + (query * heads + head) * score_stride;
  }
};

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
// As they come from memory.
template <class T, class L>
struct RawHalves {
  Pack<T, L::kPack> packs[2][L::kEach / L::kPack];
};

template <class T, class L>
__device__ __forceinline__ RawHalves<T, L> load_halves(const T* from, int half, int lane) {
  RawHalves<T, L> to;
#pragma unroll
  for (int p = 0; p < L::kEach / L::kPack; ++p) {
    const int at = L::element(p, lane);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (L::kPack > 1 || at < half)
        to.packs[h][p] = load<L::kPack>(from + h * half + at);
      else
        to.packs[h][p].values[0] = from_float<T>(0.0f);
    }
  }
  return to;
}
template <class T, class L>
__device__ __forceinline__ Halves<L> as_floats(const RawHalves<T, L>& from) {
  Halves<L> to;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int e = 0; e < L::kEach; ++e)
      to.values[h][e] = to_float(from.packs[h][e / L::kPack].values[e % L::kPack]);
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

// Puts the lane groups of a block together, in order.
template <class L>
__device__ void store_run(float* to, const Online<L>& own, int head_dim, int group, int lane) {
  __shared__ float most[L::kGroups], sum[L::kGroups], out[L::kGroups][2 * L::kLanes * L::kEach];
  const int half = head_dim / 2;
  __syncthreads();  // the run before has been read
#pragma unroll
  for (int p = 0; p < L::kEach / L::kPack; ++p)
#pragma unroll
    for (int i = 0; i < L::kPack; ++i) {
      const int at = L::element(p, lane) + i;
      if (at < half)
        for (int h = 0; h < 2; ++h) out[group][h * half + at] = own.out.values[h][p * L::kPack + i];
    }
  if (lane == 0) most[group] = own.most, sum[group] = own.sum;
  __syncthreads();
  float all = -INFINITY, total = 0;
  for (int g = 0; g < L::kGroups; ++g) all = fmaxf(all, most[g]);
  for (int g = 0; g < L::kGroups; ++g) total += sum[g] * weight_of(most[g], all);
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kSplitThreads) {
    float value = 0;
    for (int g = 0; g < L::kGroups; ++g) value += out[g][d] * weight_of(most[g], all);
    to[d] = value;
  }
  if (threadIdx.x == 0) to[head_dim] = all, to[head_dim + 1] = total;
}

// Keys and values of one step of a block: key u of a lane group is base + u * groups + group, or the last of
// the run where there is none.
template <class T, class L>
struct Step {
  RawHalves<T, L> k[kKeysAtOnce], v[kKeysAtOnce];

  __device__ __forceinline__ void load(const Heads<T>& a, const SeenKeys<T>& seen, int64_t column, int base,
                                       int end, int group, int lane) {
    const int half = a.head_dim / 2;
#pragma unroll
    for (int u = 0; u < kKeysAtOnce; ++u) {
      const int j = min(base + u * L::kGroups + group, end - 1);
      const bool old = j < seen.count;
      const int64_t row = old ? j : j - seen.count + seen.first_new;
      k[u] = load_halves<T, L>(old ? seen.cached_k.data + row * seen.cached_k.stride + column
                                   : a.k.data + row * a.k.stride + column,
                               half, lane);
      if (a.partial)
        v[u] = load_halves<T, L>(old ? seen.cached_v.data + row * seen.cached_v.stride + column
                                     : a.v.data + row * a.v.stride + column,
                                 half, lane);
    }
  }
};

// Run `run` of the keys of query `query` of the launch, row `token` of q, for SHARED query heads from
// `first_head` on, those beyond the KV head's group left out.
template <class T, class L, int SHARED>
__device__ void attend_run(const Heads<T>& a, const SeenKeys<T>& seen, int64_t token, int64_t query,
                           int64_t kv_head, int64_t first_head, int64_t run) {
  const int lane = static_cast<int>(threadIdx.x) % L::kLanes,
            group = static_cast<int>(threadIdx.x) / L::kLanes;
  const int half = a.head_dim / 2;
  const int64_t column = kv_head * a.head_dim, last_head = (kv_head + 1) * a.group() - 1;
  const int length = static_cast<int>(run_length(seen.keys, a.kv_heads));
  const int begin = static_cast<int>(run) * length, end = min(begin + length, static_cast<int>(seen.keys));
  if (begin >= end) return;
  constexpr int kStep = L::kGroups * kKeysAtOnce;
  Step<T, L> next;
  // Old keys do not wait for the new one.
  const bool early = begin + kStep <= seen.count;
  if (early) next.load(a, seen, column, begin, end, group, lane);
  wait_for_earlier();
  if (!early) next.load(a, seen, column, begin, end, group, lane);
  Halves<L> q[SHARED];
  Online<L> own[SHARED];
#pragma unroll
  for (int g = 0; g < SHARED; ++g)
    q[g] = as_floats<T, L>(load_halves<T, L>(
        a.q.data + token * a.q.stride + min(first_head + g, last_head) * a.head_dim, half, lane));
  // Every lane of a warp goes round as often, because the sums over lanes are steps of the whole warp. Keys
  // behind the end are the last one again, with a score of -inf.
  for (int base = begin; base < end; base += kStep) {
    const Step<T, L> now = next;
    if (base + kStep < end) next.load(a, seen, column, base + kStep, end, group, lane);
    float scores[SHARED][kKeysAtOnce];
#pragma unroll
    for (int u = 0; u < kKeysAtOnce; ++u) {
      const int j = base + u * L::kGroups + group;
      Halves<L> k = as_floats<T, L>(now.k[u]);
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
    if (!a.partial) continue;
    Halves<L> values[kKeysAtOnce];
#pragma unroll
    for (int u = 0; u < kKeysAtOnce; ++u) values[u] = as_floats<T, L>(now.v[u]);
#pragma unroll
    for (int g = 0; g < SHARED; ++g) own[g].add(scores[g], values);
  }
  if (!a.partial) return;
#pragma unroll
  for (int g = 0; g < SHARED; ++g)
    if (first_head + g <= last_head)
      store_run<L>(a.run(query, first_head + g, run), own[g], a.head_dim, group, lane);
}

// Puts the runs of one query and head together: out [D] and the log-sum-exp, which every thread gets. Called
// by a whole block of any size. The order of sums is the same whatever the size: slice i of kSlices adds runs
// i, i + kSlices, ...; then slices are added in order.
template <class T>
__device__ float combine_runs(const Heads<T>& a, const float* runs, int64_t count, T* out) {
  constexpr int kSlices = 8;
  __shared__ float parts[kSlices][kMostDim];
  const int64_t size = a.head_dim + 2;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, threads = static_cast<int>(blockDim.x);
  float most = -INFINITY, sum = 0;
  for (int64_t s = lane; s < count; s += kWarp) most = fmaxf(most, runs[s * size + a.head_dim]);
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, distance));
  for (int64_t s = lane; s < count; s += kWarp)
    sum += runs[s * size + a.head_dim + 1] * weight_of(runs[s * size + a.head_dim], most);
  sum = warp_sum(sum);
  __syncthreads();  // the parts before have been read
  for (int i = static_cast<int>(threadIdx.x); i < kSlices * a.head_dim; i += threads) {
    const int slice = i / a.head_dim, d = i % a.head_dim;
    float value = 0;
#pragma unroll 4
    for (int64_t s = slice; s < count; s += kSlices)
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

// ---- for launchers

inline float scale_of(int64_t head_dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
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
