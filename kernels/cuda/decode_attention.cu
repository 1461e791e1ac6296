// Attention of n new tokens to a cache and, causally, to one another; and the attention that each key
// receives.
//
// q, out [n, Hq D], keys and values [., Hkv D] in f32 or bf16, sums in f32. The keys of a query head are
// split into runs of kSplit; a block takes a run for one query and head, 8 lanes to a key (each holds the
// same elements of both halves of the head, so that RoPE stays inside a lane), 16 keys at a time, online
// softmax (Milakov & Gimelshein, arXiv 1805.02867); a second kernel puts the runs together, in order. Where
// mass is wanted, scores are written down and a third kernel adds exp(score - lse) up, queries and heads in
// order. Queries go through the three kernels some at a time, so that scratch memory is bounded. Bytes: keys
// and values once per query head (the caches serve the heads that share them); 4 D FLOPs a pair. Launch:
// (splits, Hq, queries) x 128; (Hq, queries) x 128; (keys / 128, Hkv) x 128.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kv_cache.h"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kSplit = 256;                 // keys of a block
constexpr int kThreads = 128;               // of every launch
constexpr int kLanes = 8;                   // that share a key
constexpr int kGroups = kThreads / kLanes;  // keys at a time
constexpr int kMostDim = 256;
constexpr int64_t kScratch = 64 << 20;   // bytes, unless one query needs more
constexpr int64_t kMostQueries = 32768;  // of a launch

template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
};
template <class T>
Rows<T> rows_of(const Tensor& t) {
  return {t.as<T>(), t.row_stride};
}

template <class T>
struct Arguments {
  Rows<const T> q, k, v, cached_k, cached_v;
  Rows<T> out;
  Rows<float> lse, mass, new_mass;
  Rows<const int32_t> ranks;     // null: keys come after RoPE
  const float *cosines, *sines;  // [P, D / 2]
  int64_t count, tokens, heads, kv_heads, splits;
  int64_t first;  // the first query of this launch
  int head_dim;
  float scale;
  float* scores;   // [queries, Hq, keys], or null
  float* partial;  // [queries, Hq, splits, D + 2]: out, maximum, sum; null: scores alone are wanted

  __device__ int64_t keys() const { return count + tokens; }
  __device__ int64_t group() const { return heads / kv_heads; }
};

// A lane's elements of both halves of a head: pack p of lane s holds elements (8 p + s) N + [0, N) of each.
// With N = 1 those beyond the half are 0.
template <int kEach>
struct Halves {
  float values[2][kEach];
};
template <int N>
__device__ __forceinline__ int element_of(int pack, int lane) {
  return (pack * kLanes + lane) * N;
}

template <class T, int kEach, int N>
__device__ __forceinline__ Halves<kEach> load_halves(const T* from, int half, int lane) {
  Halves<kEach> to;
#pragma unroll
  for (int p = 0; p < kEach / N; ++p) {
    const int at = element_of<N>(p, lane);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (N > 1 || at < half) {
        const Pack<T, N> pack = load<N>(from + h * half + at);
        for (int i = 0; i < N; ++i) to.values[h][p * N + i] = to_float(pack.values[i]);
      } else {
        to.values[h][p * N] = 0.0f;
      }
    }
  }
  return to;
}

template <int kEach, int N>
__device__ __forceinline__ void turn(Halves<kEach>& x, const float* cosine, const float* sine, int half,
                                     int lane) {
#pragma unroll
  for (int p = 0; p < kEach / N; ++p) {
    const int at = element_of<N>(p, lane);
    if (N == 1 && at >= half) continue;
    float c[N], s[N];
    load_floats<N>(c, cosine, false, at);
    load_floats<N>(s, sine, false, at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float& a = x.values[0][p * N + i];
      float& b = x.values[1][p * N + i];
      const float left = a * c[i] - b * s[i];
      b = b * c[i] + a * s[i];
      a = left;
    }
  }
}

template <int kEach>
__device__ __forceinline__ float dot(const Halves<kEach>& a, const Halves<kEach>& b) {
  float sum = 0;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum += a.values[h][i] * b.values[h][i];
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  return sum;
}

// What 8 lanes have seen so far.
template <int kEach>
struct Online {
  Halves<kEach> out{};
  float most = -INFINITY, sum = 0;

  __device__ __forceinline__ void add(float score, const Halves<kEach>& value) {
    const float next = fmaxf(most, score);
    const float before = expf(most - next), own = expf(score - next);  // exp(-inf) = 0 the first time
    sum = sum * before + own;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < kEach; ++i) out.values[h][i] = out.values[h][i] * before + own * value.values[h][i];
    most = next;
  }
};

// The share of a run in the whole: 0 when it saw nothing.
__device__ __forceinline__ float weight_of(float most, float all) {
  return most == -INFINITY ? 0.0f : expf(most - all);
}

// Puts the 16 groups of a block together, in order.
template <int kEach, int N>
__device__ void store_partial(float* to, const Online<kEach>& own, int head_dim, int group, int lane) {
  __shared__ float most[kGroups], sum[kGroups], out[kGroups][kMostDim];
  const int half = head_dim / 2;
#pragma unroll
  for (int p = 0; p < kEach / N; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int at = element_of<N>(p, lane) + i;
      if (at < half)
        for (int h = 0; h < 2; ++h) out[group][h * half + at] = own.out.values[h][p * N + i];
    }
  if (lane == 0) most[group] = own.most, sum[group] = own.sum;
  __syncthreads();
  float all = -INFINITY, total = 0;
  for (int g = 0; g < kGroups; ++g) all = fmaxf(all, most[g]);
  for (int g = 0; g < kGroups; ++g) total += sum[g] * weight_of(most[g], all);
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += kThreads) {
    float value = 0;
    for (int g = 0; g < kGroups; ++g) value += out[g][d] * weight_of(most[g], all);
    to[d] = value;
  }
  if (threadIdx.x == 0) to[head_dim] = all, to[head_dim + 1] = total;
}

template <class T, int kEach, int N>
__global__ void __launch_bounds__(kThreads) split_kernel(Arguments<T> a) {
  const int64_t split = blockIdx.x, head = blockIdx.y, query = blockIdx.z, token = a.first + query;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
  const int half = a.head_dim / 2;
  const int64_t kv_head = head / a.group(), column = kv_head * a.head_dim;
  const int64_t begin = split * kSplit, end = min(begin + kSplit, a.count + token + 1);
  const Halves<kEach> q =
      load_halves<T, kEach, N>(a.q.data + token * a.q.stride + head * a.head_dim, half, lane);
  Online<kEach> seen;
  // Every lane of a warp goes round as often, because the sums over 8 lanes are steps of the whole warp.
#pragma unroll 2
  for (int64_t base = begin; base < end; base += kGroups) {
    const int64_t j = base + group;
    const bool valid = j < end, old = j < a.count;
    Halves<kEach> k{};
    if (valid) {
      k = load_halves<T, kEach, N>(
          (old ? a.cached_k.data + j * a.cached_k.stride : a.k.data + (j - a.count) * a.k.stride) + column,
          half, lane);
      if (a.ranks.data) {
        const int64_t angle = old ? a.ranks.data[kv_head * a.ranks.stride + j] : j;
        turn<kEach, N>(k, a.cosines + angle * half, a.sines + angle * half, half, lane);
      }
    }
    const float score = dot(q, k) * a.scale;
    if (!valid) continue;
    if (a.scores && lane == 0) a.scores[(query * a.heads + head) * a.keys() + j] = score;
    if (a.partial)
      seen.add(score, load_halves<T, kEach, N>((old ? a.cached_v.data + j * a.cached_v.stride
                                                    : a.v.data + (j - a.count) * a.v.stride) +
                                                   column,
                                               half, lane));
  }
  if (a.partial)
    store_partial<kEach, N>(a.partial + ((query * a.heads + head) * a.splits + split) * (a.head_dim + 2),
                            seen, a.head_dim, group, lane);
}

template <class T>
__global__ void __launch_bounds__(kThreads) combine_kernel(Arguments<T> a) {
  const int64_t head = blockIdx.x, query = blockIdx.y, token = a.first + query;
  const int64_t size = a.head_dim + 2;
  const float* const runs = a.partial + (query * a.heads + head) * a.splits * size;
  float most = -INFINITY, sum = 0;
  for (int64_t s = 0; s < a.splits; ++s) most = fmaxf(most, runs[s * size + a.head_dim]);
  for (int64_t s = 0; s < a.splits; ++s)
    sum += runs[s * size + a.head_dim + 1] * weight_of(runs[s * size + a.head_dim], most);
  for (int d = static_cast<int>(threadIdx.x); d < a.head_dim; d += kThreads) {
    float value = 0;
    for (int64_t s = 0; s < a.splits; ++s)
      value += runs[s * size + d] * weight_of(runs[s * size + a.head_dim], most);
    a.out.data[token * a.out.stride + head * a.head_dim + d] = from_float<T>(value / sum);
  }
  if (threadIdx.x == 0) a.lse.data[head * a.lse.stride + token] = most + logf(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) mass_kernel(Arguments<T> a, int64_t queries) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, kv_head = blockIdx.y;
  if (j >= a.keys()) return;
  const bool old = j < a.count;
  float sum = 0;
  for (int64_t query = max(int64_t{0}, j - a.count - a.first); query < queries; ++query)
    for (int64_t head = kv_head * a.group(); head < (kv_head + 1) * a.group(); ++head)
      sum += expf(a.scores[(query * a.heads + head) * a.keys() + j] -
                  a.lse.data[head * a.lse.stride + a.first + query]);
  float& to = old ? a.mass.data[kv_head * a.mass.stride + j]
                  : a.new_mass.data[kv_head * a.new_mass.stride + j - a.count];
  to = old || a.first > 0 ? to + sum : sum;
}

// Calls work(each, N) with constants that fit the head: packs where it has as many as 8 lanes take.
template <class T, class Work>
void with_layout(bool packed, int64_t head_dim, Work&& work) {
  constexpr int kPack = kPackBytes / static_cast<int>(sizeof(T));
  if (packed && head_dim == 64)
    work(std::integral_constant<int, 4>{}, std::integral_constant<int, 4>{});
  else if (packed && head_dim == 128)
    work(std::integral_constant<int, 8>{}, std::integral_constant<int, kPack>{});
  else
    work(std::integral_constant<int, kMostDim / 2 / kLanes>{}, std::integral_constant<int, 1>{});
}

template <class T>
void launch(const Arguments<T>& a, int64_t queries, bool packed, cudaStream_t stream) {
  const unsigned heads = blocks_for(a.heads, "heads"), some = blocks_for(queries, "queries");
  if (a.partial || a.scores) {
    with_layout<T>(packed, a.head_dim,
                   [&]<int kEach, int N>(std::integral_constant<int, kEach>, std::integral_constant<int, N>) {
                     split_kernel<T, kEach, N>
                         <<<dim3(blocks_for(a.splits, "splits"), heads, some), kThreads, 0, stream>>>(a);
                   });
    check_launch("split_kernel");
  }
  if (a.partial) {
    combine_kernel<T><<<dim3(heads, some), kThreads, 0, stream>>>(a);
    check_launch("combine_kernel");
  }
  if (a.scores) {
    const int64_t keys = a.count + a.tokens;
    mass_kernel<T>
        <<<dim3(blocks_for((keys + kThreads - 1) / kThreads, "keys"), blocks_for(a.kv_heads, "KV heads")),
           kThreads, 0, stream>>>(a, queries);
    check_launch("mass_kernel");
  }
}

}  // namespace
}  // namespace cuda

void CudaOps::cached_attention(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                               const Tensor& k, const Tensor& v, const KvCacheView& cache,
                               const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  const int64_t tokens = q.rows(), width = q.row_size(), kv_width = k.row_size(), keys = cache.count + tokens;
  if (head_dim <= 0 || head_dim % 2 != 0 || head_dim > cuda::kMostDim || kv_width < head_dim ||
      width % head_dim != 0 || kv_width % head_dim != 0 || width % kv_width != 0)
    fail_internal("cached attention: rows of {} and {} elements do not hold query and KV heads of {}", width,
                  kv_width, head_dim);
  const int64_t heads = width / head_dim, kv_heads = kv_width / head_dim;
  cuda::expect(q, "cached attention q", activation_, tokens, width);
  cuda::expect(out, "cached attention out", activation_, tokens, width);
  cuda::expect(lse, "cached attention lse", DType::f32, heads, tokens);
  cuda::expect_cache(cache, k, v, new_mass, activation_, kv_heads);
  if (cache.ranks) {
    for (const Tensor& table : {cosines, sines}) {
      cuda::expect(table, "cached attention angles", DType::f32, cosines.rows(), head_dim / 2);
      cuda::expect_contiguous(table, "cached attention angles");
    }
    if (cosines.rows() < keys)
      fail_internal("cached attention: {} keys to turn, the table has {} rows", keys, cosines.rows());
  }
  const bool flash = cache.count == 0 && !cache.ranks;
  const auto splits_of = [](int64_t count) { return (count + cuda::kSplit - 1) / cuda::kSplit; };
  // Laid out for a full cache, so that decoding allocates nothing.
  const int64_t most_keys = cache.k.rows() + tokens;
  const int64_t score_bytes = cache.mass ? heads * most_keys * 4 : 0;
  const int64_t partial_bytes = flash ? 0 : heads * splits_of(most_keys) * (head_dim + 2) * 4;
  const int64_t fit = cuda::kScratch / std::max<int64_t>(1, score_bytes + partial_bytes);
  const int64_t each = std::max<int64_t>(1, std::min({fit, tokens, cuda::kMostQueries}));
  const int64_t pieces[] = {cuda::Workspace::aligned(each * score_bytes),
                            cuda::Workspace::aligned(each * partial_bytes),
                            cuda::Workspace::aligned(2 * size_of(DType::i64))};
  scratch_.reserve(pieces[0] + pieces[1] + pieces[2]);
  auto* const scores = score_bytes > 0 ? static_cast<float*>(scratch_.take(pieces[0])) : nullptr;
  auto* const partial = partial_bytes > 0 ? static_cast<float*>(scratch_.take(pieces[1])) : nullptr;
  if (flash) {
    const Tensor offsets(scratch_.take(pieces[2]), DType::i64, {2}, Device::cuda);
    const int64_t bounds[] = {0, tokens};
    upload(offsets, bounds);
    attention_forward(out, lse, q, k, v, {offsets, {}, 1, tokens}, {}, head_dim);
    if (!scores) return;
  }
  bool packed = !cache.ranks || (cuda::aligned(cosines) && cuda::aligned(sines));
  for (const Tensor& each_tensor : {q, k, v, cache.k, cache.v})
    packed = packed && cuda::packable(each_tensor);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::Arguments<T> a{.q = cuda::rows_of<const T>(q),
                         .k = cuda::rows_of<const T>(k),
                         .v = cuda::rows_of<const T>(v),
                         .cached_k = cuda::rows_of<const T>(cache.k),
                         .cached_v = cuda::rows_of<const T>(cache.v),
                         .out = cuda::rows_of<T>(out),
                         .lse = cuda::rows_of<float>(lse),
                         .mass = cuda::rows_of<float>(cache.mass),
                         .new_mass = cuda::rows_of<float>(new_mass),
                         .ranks = cuda::rows_of<const int32_t>(cache.ranks),
                         .cosines = cosines.as<float>(),
                         .sines = sines.as<float>(),
                         .count = cache.count,
                         .tokens = tokens,
                         .heads = heads,
                         .kv_heads = kv_heads,
                         .splits = splits_of(keys),
                         .first = 0,
                         .head_dim = static_cast<int>(head_dim),
                         .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim))),
                         .scores = scores,
                         .partial = partial};
    for (a.first = 0; a.first < tokens; a.first += each)
      cuda::launch(a, std::min(each, tokens - a.first), packed, stream_);
  });
}

}  // namespace sinklora
