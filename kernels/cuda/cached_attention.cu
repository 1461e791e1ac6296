// Attention of n new tokens to a cache and, causally, to one another; and the attention that each key
// receives.
//
// q, out [n, Hq D], keys and values [., Hkv D] in f32 or bf16, sums in f32. Chunks of bf16 go through the
// flash kernel (attention.h) as the last rows of a sequence: their keys are appended to the cache, where it
// has room for all, or put behind a copy of it; their mass is a second pass on tensor cores
// (attention_mass.cu). What these do not take, f32 above all, goes through runs of keys
// (cached_attention.cuh): a kernel for runs, one that puts them together, and where mass is wanted, scores
// are written down and a third kernel adds exp(score - lse) up, queries and heads in order. Queries go
// through the three some at a time, so that scratch memory is bounded. Launch: (Hq or fewer, runs, queries)
// x 128; (Hq, queries) x 128; (keys / 128, Hkv) x 128.
#include "kernels/cuda/cached_attention.cuh"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_cache.h"

namespace sinklora {
namespace cuda {
namespace {

constexpr int64_t kScratch = 64 << 20;   // bytes, unless one query needs more
constexpr int64_t kMostQueries = 32768;  // of a launch
constexpr int64_t kFewTokens = 16;       // below this, a chunk does not fill the flash kernel's tiles

template <class T>
struct Chunk {
  Rows<const T> cached_k, cached_v;
  Rows<float> mass, new_mass;
  Rows<const int32_t> ranks;  // null: keys come after RoPE
  int64_t count, tokens;
  int64_t first;  // the first query of this launch

  __host__ __device__ int64_t keys() const { return count + tokens; }
};

template <class T, class L, int SHARED>
__global__ void __launch_bounds__(kSplitThreads) split_kernel(Heads<T> a, Chunk<T> c) {
  const int64_t passes = gridDim.x / a.kv_heads, kv_head = blockIdx.x / passes;
  const int64_t query = blockIdx.z, token = c.first + query;
  const SeenKeys<T> seen{
      c.cached_k, c.cached_v,          c.ranks.data ? c.ranks.data + kv_head * c.ranks.stride : nullptr,
      c.count,    c.count + token + 1, 0};
  attend_run<T, L, SHARED>(a, seen, token, query, kv_head, kv_head * a.group() + blockIdx.x % passes * SHARED,
                           blockIdx.y);
}

template <class T>
__global__ void __launch_bounds__(kSplitThreads) combine_kernel(Heads<T> a, Chunk<T> c) {
  const int64_t head = blockIdx.x, query = blockIdx.y, token = c.first + query;
  const float lse = combine_runs(a, a.run(query, head, 0), runs_of(c.count + token + 1, a.kv_heads),
                                 a.out.data + token * a.out.stride + head * a.head_dim);
  if (threadIdx.x == 0) a.lse.data[head * a.lse.stride + token] = lse;
}

template <class T>
__global__ void __launch_bounds__(kSplitThreads) mass_kernel(Heads<T> a, Chunk<T> c, int64_t queries) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kSplitThreads + threadIdx.x, kv_head = blockIdx.y;
  if (j >= c.keys()) return;
  const bool old = j < c.count;
  float sum = 0;
  for (int64_t query = max(int64_t{0}, j - c.count - c.first); query < queries; ++query)
    for (int64_t head = kv_head * a.group(); head < (kv_head + 1) * a.group(); ++head)
      sum += expf(a.scores_of(query, head)[j] - a.lse.data[head * a.lse.stride + c.first + query]);
  float& to = old ? c.mass.data[kv_head * c.mass.stride + j]
                  : c.new_mass.data[kv_head * c.new_mass.stride + j - c.count];
  to = old || c.first > 0 ? to + sum : sum;
}

template <class T>
void launch(const Heads<T>& a, const Chunk<T>& c, int64_t queries, bool packed, cudaStream_t stream) {
  const unsigned heads = blocks_for(a.heads, "heads"), some = blocks_for(queries, "queries");
  const unsigned runs = blocks_for(most_runs(c.keys(), a.kv_heads), "runs of keys");
  with_layout<T>(
      packed, a.head_dim, a.group(), [&]<class L, int SHARED>(L, std::integral_constant<int, SHARED>) {
        const int64_t passes = (a.group() + SHARED - 1) / SHARED;
        split_kernel<T, L, SHARED>
            <<<dim3(blocks_for(a.kv_heads * passes, "KV heads"), runs, some), kSplitThreads, 0, stream>>>(a,
                                                                                                          c);
      });
  check_launch("split_kernel");
  if (a.partial) {
    combine_kernel<T><<<dim3(heads, some), kSplitThreads, 0, stream>>>(a, c);
    check_launch("combine_kernel");
  }
  if (a.scores) {
    mass_kernel<T><<<dim3(blocks_for((c.keys() + kSplitThreads - 1) / kSplitThreads, "keys"),
                          blocks_for(a.kv_heads, "KV heads")),
                     kSplitThreads, 0, stream>>>(a, c, queries);
    check_launch("mass_kernel");
  }
}

// Rows of keys before RoPE, turned to their ranks, head by head; new ones to the places behind them.
struct Turning {
  Rows<const bf16> from;
  Rows<bf16> to;
  Rows<const int32_t> ranks;  // null: row r is turned to first + r
  const float *cosines, *sines;
  int64_t first;
  int head_dim;
};
__global__ void turn_kernel(Turning t) {
  const int64_t row = blockIdx.x, kv_head = blockIdx.y;
  const int half = t.head_dim / 2, i = static_cast<int>(threadIdx.x);
  const int64_t angle = t.ranks.data ? t.ranks.data[kv_head * t.ranks.stride + row] : t.first + row;
  const bf16* const from = t.from.data + row * t.from.stride + kv_head * t.head_dim;
  bf16* const to = t.to.data + row * t.to.stride + kv_head * t.head_dim;
  const float a = to_float(from[i]), b = to_float(from[half + i]);
  const float c = t.cosines[angle * half + i], s = t.sines[angle * half + i];
  to[i] = from_float<bf16>(a * c - b * s);
  to[half + i] = from_float<bf16>(b * c + a * s);
}

void turn_keys(const Tensor& to, const Tensor& from, const Tensor& ranks, int64_t first,
               const Tensor& cosines, const Tensor& sines, int64_t head_dim, cudaStream_t stream) {
  if (from.rows() == 0) return;
  turn_kernel<<<dim3(blocks_for(from.rows(), "keys"), blocks_for(from.row_size() / head_dim, "KV heads")),
                static_cast<unsigned>(head_dim / 2), 0, stream>>>(
      {rows_of<const bf16>(from), rows_of<bf16>(to), rows_of<const int32_t>(ranks), cosines.as<float>(),
       sines.as<float>(), first, static_cast<int>(head_dim)});
  check_launch("turn_kernel");
}

}  // namespace

void expect_cached_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const KvCacheView& cache, const Tensor& cosines, const Tensor& sines,
                             DType activation, int64_t head_dim, int64_t keys) {
  const int64_t tokens = q.rows(), width = q.row_size(), kv_width = k.row_size();
  if (head_dim <= 0 || head_dim % 2 != 0 || head_dim > kMostDim || kv_width < head_dim ||
      width % head_dim != 0 || kv_width % head_dim != 0 || width % kv_width != 0)
    fail_internal("cached attention: rows of {} and {} elements do not hold query and KV heads of {}", width,
                  kv_width, head_dim);
  expect(q, "cached attention q", activation, tokens, width);
  expect(out, "cached attention out", activation, tokens, width);
  expect(lse, "cached attention lse", DType::f32, width / head_dim, tokens);
  if (!cache.ranks) return;
  for (const Tensor& table : {cosines, sines}) {
    expect(table, "cached attention angles", DType::f32, cosines.rows(), head_dim / 2);
    expect_contiguous(table, "cached attention angles");
  }
  if (cosines.rows() < keys)
    fail_internal("cached attention: {} keys to turn, the table has {} rows", keys, cosines.rows());
}

}  // namespace cuda

// The chunk as the last rows of a sequence, whose first are the cache's tokens: in any order, since all of
// them are seen by all of the chunk.
void CudaOps::attend_by_flash(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                              const Tensor& k, const Tensor& v, const KvCacheView& cache,
                              const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  const int64_t tokens = q.rows(), width = q.row_size(), kv_width = k.row_size(), count = cache.count;
  const int64_t keys = count + tokens, heads = width / head_dim;
  const bool in_place = !cache.ranks && keys <= cache.k.rows();
  // The kernel's tiles of 128 queries may begin before the chunk: what they read and write there is scratch.
  const int64_t before = count % 128, rows = before + tokens, first_row = count - before;
  const int64_t kv_bytes = cuda::Workspace::aligned(keys * kv_width * 2);
  const int64_t q_bytes = cuda::Workspace::aligned(rows * width * 2);
  scratch_.reserve((in_place ? 0 : 2 * kv_bytes) + 2 * q_bytes + cuda::Workspace::aligned(heads * rows * 4) +
                   256);
  const Tensor offsets(scratch_.take(2 * size_of(DType::i64)), DType::i64, {2}, Device::cuda);
  const int64_t bounds[] = {0, keys};
  upload(offsets, bounds);
  const auto place = [&](const Tensor& cached, const Tensor& fresh) {
    const Tensor all = in_place ? cached.row_slice(0, keys) : scratch_.take(DType::bf16, keys, kv_width);
    if (!in_place && count > 0) copy(all.row_slice(0, count), cached.row_slice(0, count));
    copy(all.row_slice(count, tokens), fresh);
    return all;
  };
  Tensor all_k;
  if (cache.ranks) {
    all_k = scratch_.take(DType::bf16, keys, kv_width);
    cuda::turn_keys(all_k.row_slice(0, count), cache.k.row_slice(0, count), cache.ranks, 0, cosines, sines,
                    head_dim, stream_);
    cuda::turn_keys(all_k.row_slice(count, tokens), k, {}, count, cosines, sines, head_dim, stream_);
  } else {
    all_k = place(cache.k, k);
  }
  const Tensor all_v = place(cache.v, v);
  const Tensor some_q = scratch_.take(DType::bf16, rows, width),
               some_out = scratch_.take(DType::bf16, rows, width);
  const Tensor some_lse(scratch_.take(heads * rows * 4), DType::f32, {heads, rows}, Device::cuda);
  if (before > 0) zero(some_q.row_slice(0, before));
  copy(some_q.row_slice(before, tokens), q);
  // As if they held rows from 0 on.
  const auto from_row_0 = [&](const Tensor& some) {
    return Tensor(some.as<char>() - first_row * width * 2, DType::bf16, {keys, width}, Device::cuda);
  };
  Tensor lse_from_0(some_lse.as<char>() - first_row * 4, DType::f32, {heads, keys}, Device::cuda);
  lse_from_0.row_stride = rows;
  cuda::attention_forward(from_row_0(some_out), lse_from_0, from_row_0(some_q), all_k, all_v,
                          {offsets, {}, 1, keys}, {}, head_dim, stream_, cuda::AttentionKernel::automatic,
                          count);
  copy(out, some_out.row_slice(before, tokens));
  copy(lse, some_lse.column_slice(before, tokens));
  if (cache.mass) cuda::add_mass(cache.mass, new_mass, q, all_k, lse, count, head_dim, stream_);
}

void CudaOps::attend_by_runs(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                             const Tensor& k, const Tensor& v, const KvCacheView& cache,
                             const Tensor& cosines, const Tensor& sines, int64_t head_dim,
                             bool scores_alone) {
  const int64_t tokens = q.rows(), heads = q.row_size() / head_dim, kv_heads = k.row_size() / head_dim;
  // Laid out for a full cache, so that decoding allocates nothing.
  const int64_t most_keys = cache.k.rows() + tokens, runs = cuda::most_runs(most_keys, kv_heads);
  const int64_t score_bytes = cache.mass ? heads * most_keys * 4 : 0;
  const int64_t partial_bytes = scores_alone ? 0 : heads * runs * (head_dim + 2) * 4;
  const int64_t fit = cuda::kScratch / std::max<int64_t>(1, score_bytes + partial_bytes);
  const int64_t each = std::max<int64_t>(1, std::min({fit, tokens, cuda::kMostQueries}));
  const int64_t pieces[] = {cuda::Workspace::aligned(each * score_bytes),
                            cuda::Workspace::aligned(each * partial_bytes)};
  scratch_.reserve(pieces[0] + pieces[1]);
  auto* const scores = score_bytes > 0 ? static_cast<float*>(scratch_.take(pieces[0])) : nullptr;
  auto* const partial = partial_bytes > 0 ? static_cast<float*>(scratch_.take(pieces[1])) : nullptr;
  bool packed = !cache.ranks || (cuda::aligned(cosines) && cuda::aligned(sines));
  for (const Tensor& each_tensor : {q, k, v, cache.k, cache.v})
    packed = packed && cuda::packable(each_tensor);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::Heads<T> a = cuda::heads_of<T>(out, lse, q, k, v, cosines, sines, head_dim);
    a.runs = runs, a.score_stride = most_keys, a.scores = scores, a.partial = partial;
    cuda::Chunk<T> c{.cached_k = cuda::rows_of<const T>(cache.k),
                     .cached_v = cuda::rows_of<const T>(cache.v),
                     .mass = cuda::rows_of<float>(cache.mass),
                     .new_mass = cuda::rows_of<float>(new_mass),
                     .ranks = cuda::rows_of<const int32_t>(cache.ranks),
                     .count = cache.count,
                     .tokens = tokens,
                     .first = 0};
    for (; c.first < tokens; c.first += each)
      cuda::launch(a, c, std::min(each, tokens - c.first), packed, stream_);
  });
}

void CudaOps::cached_attention(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                               const Tensor& k, const Tensor& v, const KvCacheView& cache,
                               const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  const int64_t tokens = q.rows();
  cuda::expect_cached_attention(out, lse, q, k, cache, cosines, sines, activation_, head_dim,
                                cache.count + tokens);
  cuda::expect_cache(cache, k, v, new_mass, activation_, k.row_size() / head_dim);
  bool packed = activation_ == DType::bf16 && cuda::attention_supported(activation_, head_dim);
  for (const Tensor& each : {q, k, v, out, cache.k, cache.v}) packed = packed && cuda::packable(each);
  if (packed && tokens >= cuda::kFewTokens)
    return attend_by_flash(out, lse, new_mass, q, k, v, cache, cosines, sines, head_dim);
  const bool first = cache.count == 0 && !cache.ranks;
  if (first) {
    scratch_.reserve(256);
    const Tensor offsets(scratch_.take(2 * size_of(DType::i64)), DType::i64, {2}, Device::cuda);
    const int64_t bounds[] = {0, tokens};
    upload(offsets, bounds);
    attention_forward(out, lse, q, k, v, {offsets, {}, 1, tokens}, {}, head_dim);
    if (!cache.mass) return;
  }
  attend_by_runs(out, lse, new_mass, q, k, v, cache, cosines, sines, head_dim, first);
}

}  // namespace sinklora
