// One new token of each of S sequences: attention to its cache, the attention that the cached tokens receive
// (H2O), and its own entry into the cache, which evicts another one.
//
// q, out [S, Hq D], k, v [S, Hkv D], caches [capacity, Hkv D] in f32 or bf16; how many tokens a cache holds
// is read from device memory, so that a recorded launch serves the next token too. Two kernels. The first
// reads keys and values, once for up to 4 query heads of a KV head (cached_attention.cuh): their bytes bound
// it. The second, a block for a KV head and sequence, puts the runs together, adds exp(score - lse) to the
// masses in order of query heads, looks for the token of least mass on the way, and writes the new one over
// it. Launch: (Hkv x passes, runs, S) x 128; (Hkv, S) x 1024.
#include <algorithm>

#include "kernels/cuda/cached_attention.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_cache.cuh"
#include "kernels/cuda/kv_cache.h"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kMostCaches = 32;  // of a launch: they travel as its arguments

template <class T>
struct OwnCache {
  T *k, *v;
  int32_t *positions, *ranks;  // [Hkv, capacity], or null
  float *mass, *new_mass;      // [Hkv, capacity], [Hkv, 1], or null
  int32_t capacity, sinks, recent;
};
template <class T>
struct Decode {
  int64_t cache_stride;   // of rows of k and v
  int64_t first;          // sequence of this launch
  const int32_t* counts;  // [S, 2]: tokens in the cache, position of the new one
  OwnCache<T> caches[kMostCaches];

  __device__ int64_t count(int64_t sequence) const { return counts[2 * (first + sequence)]; }
};

template <class T, class L, int SHARED>
__global__ void __launch_bounds__(kSplitThreads, kBlocksAtOnce<L, SHARED>)
    decode_kernel(Heads<T> a, __grid_constant__ const Decode<T> d) {
  let_next_begin();
  const int64_t passes = gridDim.x / a.kv_heads, kv_head = blockIdx.x / passes, sequence = blockIdx.z;
  const OwnCache<T>& cache = d.caches[sequence];
  const int64_t count = d.count(sequence), row = d.first + sequence;
  const SeenKeys<T> seen{{cache.k, d.cache_stride},
                         {cache.v, d.cache_stride},
                         cache.ranks ? cache.ranks + kv_head * cache.capacity : nullptr,
                         count,
                         count + 1,
                         row};
  attend_run<T, L, SHARED>(a, seen, row, sequence, kv_head,
                           kv_head * a.group() + blockIdx.x % passes * SHARED, blockIdx.y);
}

// What a thread knows of kKeys tokens of a cache, kChoosers apart, beginning with token `begin` +
// threadIdx.x. It was written a step ago and need not wait for this one.
struct Known {
  static constexpr int kKeys = 4;
  int32_t position[kKeys];
  float mass[kKeys];

  template <class T>
  __device__ Known(const OwnCache<T>& cache, int64_t offset, int64_t begin, int64_t count) {
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      const int64_t key = begin + i * kChoosers + threadIdx.x;
      position[i] = key < count ? cache.positions[offset + key] : 0;
      mass[i] = cache.mass && key < count ? cache.mass[offset + key] : 0.0f;
    }
  }
};

// The slot that the new token takes: `count` where there is room, else the victim's, -1 where it is the
// victim. Adds what the masses receive. `known`: of the first tokens.
template <class T>
__device__ int64_t choose_slot(const Heads<T>& a, const OwnCache<T>& cache, int64_t sequence, int64_t row,
                               int64_t kv_head, int64_t count, int32_t position, Known known) {
  __shared__ float own_mass;
  const int64_t offset = kv_head * cache.capacity;
  const bool full = count >= cache.capacity;
  const int32_t recent = position + 1 - cache.recent;
  Victim own{0, 0, -1};
  for (int64_t begin = 0; begin <= count; begin += Known::kKeys * kChoosers) {
    if (begin > 0) known = Known(cache, offset, begin, count);
    float received[Known::kKeys] = {};
    if (cache.mass)
      for (int64_t head = kv_head * a.group(); head < (kv_head + 1) * a.group(); ++head) {
        const float lse = a.lse.data[head * a.lse.stride + row];
        const float* const scores = a.scores_of(sequence, head) + begin + threadIdx.x;
#pragma unroll
        for (int i = 0; i < Known::kKeys; ++i)
          if (begin + i * kChoosers + threadIdx.x <= count) received[i] += expf(scores[i * kChoosers] - lse);
      }
#pragma unroll
    for (int i = 0; i < Known::kKeys; ++i) {
      const int64_t key = begin + i * kChoosers + threadIdx.x;
      if (key > count) break;
      const int32_t at = key < count ? known.position[i] : position;
      const float mass = known.mass[i] + received[i];
      if (cache.mass && key < count) cache.mass[offset + key] = mass;
      if (cache.mass && key == count) own_mass = cache.new_mass[kv_head] = mass;
      if (full && at >= cache.sinks && at < recent)
        own = worse(own, {isnan(mass) ? 0.0f : mass, at, static_cast<int32_t>(key)});
    }
  }
  __syncthreads();  // masses are written
  Victim victim{0, 0, -1};
  int64_t slot = count;
  if (full) {
    victim = worst_of_block(own);
    slot = victim.key == count ? -1 : victim.key;
    if (cache.ranks)
      for (int64_t key = threadIdx.x; key < count; key += kChoosers)
        cache.ranks[offset + key] -= victim.position < cache.positions[offset + key];
  }
  __syncthreads();  // ranks needed the victim's position
  if (threadIdx.x == 0 && slot >= 0) {
    cache.positions[offset + slot] = position;
    if (cache.ranks)
      cache.ranks[offset + slot] = static_cast<int32_t>(count - (full && victim.position < position ? 1 : 0));
    if (cache.mass) cache.mass[offset + slot] = own_mass;
  }
  return slot;
}

template <class T>
__global__ void __launch_bounds__(kChoosers) settle_kernel(Heads<T> a, __grid_constant__ const Decode<T> d) {
  const int64_t kv_head = blockIdx.x, sequence = blockIdx.y, row = d.first + sequence;
  const OwnCache<T>& cache = d.caches[sequence];
  const int64_t count = d.count(sequence);
  const Known known(cache, kv_head * cache.capacity, 0, cache.positions ? count : 0);
  wait_for_earlier();
  for (int64_t head = kv_head * a.group(); head < (kv_head + 1) * a.group(); ++head) {
    const float lse = combine_runs(a, a.run(sequence, head, 0), runs_of(count + 1, a.kv_heads),
                                   a.out.data + row * a.out.stride + head * a.head_dim);
    if (threadIdx.x == 0) a.lse.data[head * a.lse.stride + row] = lse;
  }
  __syncthreads();  // lse is there
  const int64_t slot =
      cache.positions ? choose_slot(a, cache, sequence, row, kv_head, count, d.counts[2 * row + 1], known)
                      : count;
  if (slot < 0) return;
  const int64_t column = kv_head * a.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < a.head_dim; i += kChoosers) {
    cache.k[slot * d.cache_stride + column + i] = a.k.data[row * a.k.stride + column + i];
    cache.v[slot * d.cache_stride + column + i] = a.v.data[row * a.v.stride + column + i];
  }
}

template <class T>
OwnCache<T> own_cache(const KvStep& step) {
  const KvCacheView& view = step.cache;
  return {view.k.as<T>(),
          view.v.as<T>(),
          view.positions.as<int32_t>(),
          view.ranks.as<int32_t>(),
          view.mass.as<float>(),
          step.new_mass.as<float>(),
          narrow<int32_t>(view.k.rows(), "slots of a cache"),
          narrow<int32_t>(step.keep.sinks, "sinks"),
          narrow<int32_t>(step.keep.recent, "recent tokens")};
}

void expect_step(const KvStep& step, const Tensor& k, const Tensor& v, DType activation, int64_t kv_heads) {
  const KvCacheView& cache = step.cache;
  const int64_t capacity = cache.k.rows();
  expect_cache(cache, k, v, step.new_mass, activation, kv_heads);
  for (const Tensor& each : {cache.k, cache.v, cache.positions, cache.ranks, cache.mass})
    if (each) expect_contiguous(each, "cache of a decoding step");
  if (!cache.positions && cache.count >= capacity)
    fail_internal("a KV cache of {} slots is full and evicts nothing", capacity);
  if (cache.positions && step.keep.sinks + step.keep.heavy + step.keep.recent != capacity)
    fail_internal("a KV cache of {} slots is to keep {} + {} + {}", capacity, step.keep.sinks,
                  step.keep.heavy, step.keep.recent);
  narrow<int32_t>(step.first_position + 1, "position in a KV cache");
}

}  // namespace
}  // namespace cuda

void CudaOps::decode_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                               const Tensor& v, std::span<const KvStep> steps, const Tensor& counts,
                               const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  const auto sequences = static_cast<int64_t>(steps.size());
  cuda::expect(counts, "decode attention counts", DType::i32, sequences, 2);
  cuda::expect_contiguous(counts, "decode attention counts");
  cuda::expect(q, "decode attention q", activation_, sequences, q.row_size());
  int64_t most = 0, capacity = 0;
  bool mass = false, packed = cuda::packable(q) && cuda::packable(k) && cuda::packable(v);
  for (const KvStep& step : steps) {
    cuda::expect_cached_attention(out, lse, q, k, step.cache, cosines, sines, activation_, head_dim,
                                  step.cache.count + 1);
    cuda::expect_step(step, k.row_slice(0, 1), v.row_slice(0, 1), activation_, k.row_size() / head_dim);
    most = std::max({most, step.most_count, step.cache.count});
    capacity = std::max(capacity, step.cache.k.rows());
    mass = mass || step.cache.mass;
    packed = packed && cuda::packable(step.cache.k) && cuda::packable(step.cache.v) &&
             (!step.cache.ranks || (cuda::aligned(cosines) && cuda::aligned(sines)));
  }
  const int64_t heads = q.row_size() / head_dim, kv_heads = k.row_size() / head_dim;
  const int64_t at_once = std::min<int64_t>(sequences, cuda::kMostCaches);
  const int64_t runs = cuda::most_runs(most + 1, kv_heads), room = cuda::most_runs(capacity + 1, kv_heads);
  const int64_t score_bytes = cuda::Workspace::aligned(mass ? at_once * heads * (capacity + 1) * 4 : 0);
  const int64_t partial_bytes = cuda::Workspace::aligned(at_once * heads * room * (head_dim + 2) * 4);
  scratch_.reserve(score_bytes + partial_bytes);
  auto* const partial = static_cast<float*>(scratch_.take(partial_bytes));
  auto* const scores = mass ? static_cast<float*>(scratch_.take(score_bytes)) : nullptr;
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::Heads<T> a = cuda::heads_of<T>(out, lse, q, k, v, cosines, sines, head_dim);
    a.runs = room, a.score_stride = capacity + 1, a.scores = scores, a.partial = partial;
    cuda::Decode<T> d{k.row_size(), 0, counts.as<int32_t>(), {}};
    for (; d.first < sequences; d.first += at_once) {
      const int64_t some = std::min(at_once, sequences - d.first);
      for (int64_t s = 0; s < some; ++s)
        d.caches[s] = cuda::own_cache<T>(steps[static_cast<size_t>(d.first + s)]);
      const unsigned blocks = cuda::blocks_for(some, "sequences");
      cuda::with_layout<T>(packed, head_dim, a.group(),
                           [&]<class L, int SHARED>(L, std::integral_constant<int, SHARED>) {
                             const int64_t passes = (a.group() + SHARED - 1) / SHARED;
                             const dim3 grid(cuda::blocks_for(kv_heads * passes, "KV heads"),
                                             cuda::blocks_for(runs, "runs"), blocks);
                             cuda::launch_beside("decode_kernel", cuda::decode_kernel<T, L, SHARED>, grid,
                                                 cuda::kSplitThreads, stream_, a, d);
                           });
      cuda::launch_beside("settle_kernel", cuda::settle_kernel<T>,
                          dim3(cuda::blocks_for(kv_heads, "KV heads"), blocks), cuda::kChoosers, stream_, a,
                          d);
    }
  });
}

}  // namespace sinklora
