// Puts new tokens into a KV cache and evicts others. k, v in f32 or bf16, mass in f32, positions in i32.
//
// One block chooses for one KV head. Those who may go are ordered by mass, the later first of equals, as one
// whole number each; 64 counts over all of them find the last that goes, bit by bit, however many there are.
// New tokens take the slots of evicted ones, then unused ones. A second kernel copies their keys and values
// there; nothing else moves.
// Launch: Hkv x 1024; (n, Hkv) x 128.
#include "kernels/cuda/kv_cache.h"

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_cache.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kCopiers = 128;

struct Choice {
  int32_t *positions, *ranks;  // [Hkv, capacity]; ranks may be null
  float *mass, *new_mass;      // [Hkv, capacity], [Hkv, n], or null
  int64_t stride, rank_stride, mass_stride, new_mass_stride;
  int64_t count, tokens, first_position, evicted;
  KvRetention keep;
  uint64_t* order;   // [Hkv, count + n]: of those who may go, kStays for others
  int32_t* victims;  // [Hkv, evicted]: slots, then count + i for new token i
  int32_t* targets;  // [Hkv, n]: the slot of each new token, -1 for none

  __device__ int64_t keys() const { return count + tokens; }
  __device__ int32_t position(int64_t head, int64_t key) const {
    return key < count ? positions[head * stride + key] : static_cast<int32_t>(first_position + key - count);
  }
};

constexpr uint64_t kStays = ~uint64_t{0};

// Less goes first: of least mass, the last of equals.
__device__ uint64_t order_of(float mass, int32_t position) {
  const uint32_t bits = __float_as_uint(isnan(mass) || mass == 0 ? 0.0f : mass);
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~position);
}

__device__ int64_t count_of_block(int own) {
  __shared__ int warps[kChoosers / kWarp];
  own = __reduce_add_sync(0xffffffffu, own);
  __syncthreads();  // the previous count has been read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = own;
  __syncthreads();
  return __reduce_add_sync(0xffffffffu, warps[threadIdx.x % kWarp]);
}

// Calls take(i, place) for every i of [0, n) that is chosen; places count them, in order.
template <class Chosen, class Take>
__device__ int64_t in_order(int64_t n, Chosen&& chosen, Take&& take) {
  __shared__ int warps[kChoosers / kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int64_t before = 0;
  for (int64_t base = 0; base < n; base += kChoosers) {
    const int64_t i = base + threadIdx.x;
    const bool yes = i < n && chosen(i);
    const unsigned votes = __ballot_sync(0xffffffffu, yes);
    __syncthreads();  // the previous counts have been read
    if (lane == 0) warps[warp] = __popc(votes);
    __syncthreads();
    const int lower = __reduce_add_sync(0xffffffffu, lane < warp ? warps[lane] : 0);
    if (yes) take(i, before + lower + __popc(votes & ((1u << lane) - 1)));
    before += __reduce_add_sync(0xffffffffu, warps[lane]);
  }
  return before;
}

__device__ void choose_victims(const Choice& c, int64_t head, uint64_t* order, int32_t* victims) {
  const int64_t recent = c.first_position + c.tokens - c.keep.recent;
  for (int64_t key = threadIdx.x; key < c.keys(); key += kChoosers) {
    const int32_t position = c.position(head, key);
    float mass = 0;
    if (c.mass)
      mass = key < c.count ? c.mass[head * c.mass_stride + key]
                           : c.new_mass[head * c.new_mass_stride + key - c.count];
    order[key] = position >= c.keep.sinks && position < recent ? order_of(mass, position) : kStays;
  }
  __syncthreads();
  // The greatest of the `evicted` least: how many have its leading bits so far, and then a 0?
  uint64_t last = 0;
  int64_t left = c.evicted;
  for (int bit = 63; bit >= 0; --bit) {
    int own = 0;
    for (int64_t key = threadIdx.x; key < c.keys(); key += kChoosers) own += order[key] >> bit == last >> bit;
    const int64_t zeros = count_of_block(own);
    if (zeros < left) left -= zeros, last |= uint64_t{1} << bit;
  }
  in_order(
      c.keys(), [&](int64_t key) { return order[key] <= last; },
      [&](int64_t key, int64_t place) { victims[place] = static_cast<int32_t>(key); });
  __syncthreads();
}

// How many of those that go came before `position`.
__device__ int32_t gone_before(const Choice& c, int64_t head, const int32_t* victims, int32_t position) {
  int32_t gone = 0;
  for (int64_t v = 0; v < c.evicted; ++v) gone += c.position(head, victims[v]) < position;
  return gone;
}

__global__ void __launch_bounds__(kChoosers) choose_kernel(Choice c) {
  const int64_t head = blockIdx.x;
  int32_t* const victims = c.victims + head * c.evicted;
  int32_t* const targets = c.targets + head * c.tokens;
  if (c.evicted > 0) choose_victims(c, head, c.order + head * c.keys(), victims);

  // Slots come first among the victims.
  int freed = 0;
  for (int64_t v = threadIdx.x; v < c.evicted; v += kChoosers) freed += victims[v] < c.count;
  const int64_t slots = count_of_block(freed);
  for (int64_t i = threadIdx.x; i < c.tokens; i += kChoosers) targets[i] = 0;
  __syncthreads();
  for (int64_t v = slots + threadIdx.x; v < c.evicted; v += kChoosers) targets[victims[v] - c.count] = -1;
  __syncthreads();
  in_order(
      c.tokens, [&](int64_t i) { return targets[i] == 0; },
      [&](int64_t i, int64_t place) {
        targets[i] = place < slots ? victims[place] : static_cast<int32_t>(c.count + place - slots);
      });
  __syncthreads();
  // Ranks need the positions of those that go: these are overwritten only after all have read them.
  if (c.ranks) {
    for (int64_t key = threadIdx.x; key < c.count; key += kChoosers)
      c.ranks[head * c.rank_stride + key] -= gone_before(c, head, victims, c.position(head, key));
    __syncthreads();
    for (int64_t i = threadIdx.x; i < c.tokens; i += kChoosers)
      if (targets[i] >= 0)
        c.ranks[head * c.rank_stride + targets[i]] =
            static_cast<int32_t>(c.count + i - gone_before(c, head, victims, c.position(head, c.count + i)));
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < c.tokens; i += kChoosers) {
    if (targets[i] < 0) continue;
    c.positions[head * c.stride + targets[i]] = static_cast<int32_t>(c.first_position + i);
    if (c.mass) c.mass[head * c.mass_stride + targets[i]] = c.new_mass[head * c.new_mass_stride + i];
  }
}

// Without targets, new token i goes into slot count + i.
template <class T>
struct Copy {
  const T *k, *v;
  T *cached_k, *cached_v;
  int64_t k_stride, v_stride, cached_k_stride, cached_v_stride;
  int64_t count, tokens, head_dim;
  const int32_t* targets;
};
template <class T>
__global__ void copy_kernel(Copy<T> c) {
  const int64_t token = blockIdx.x, head = blockIdx.y;
  const int64_t slot = c.targets ? c.targets[head * c.tokens + token] : c.count + token;
  if (slot < 0) return;
  for (int64_t d = head * c.head_dim + threadIdx.x; d < (head + 1) * c.head_dim; d += kCopiers) {
    c.cached_k[slot * c.cached_k_stride + d] = c.k[token * c.k_stride + d];
    c.cached_v[slot * c.cached_v_stride + d] = c.v[token * c.v_stride + d];
  }
}

}  // namespace

void expect_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v, const Tensor& new_mass,
                  DType activation, int64_t kv_heads) {
  const int64_t capacity = cache.k.rows(), tokens = k.rows(), width = k.row_size();
  if (tokens < 1 || cache.count < 0 || cache.count > capacity)
    fail_internal("a KV cache of {} slots with {} tokens gets {} more", capacity, cache.count, tokens);
  expect(k, "cached attention k", activation, tokens, width);
  expect(v, "cached attention v", activation, tokens, width);
  expect(cache.k, "cache k", activation, capacity, width);
  expect(cache.v, "cache v", activation, capacity, width);
  for (const Tensor& each : {cache.positions, cache.ranks})
    if (each) expect(each, "cache positions or ranks", DType::i32, kv_heads, capacity);
  if (static_cast<bool>(cache.mass) != static_cast<bool>(new_mass))
    fail_internal("of a KV cache's mass and that of new tokens, one is missing");
  if (cache.mass) {
    expect(cache.mass, "cache mass", DType::f32, kv_heads, capacity);
    expect(new_mass, "cache new_mass", DType::f32, kv_heads, tokens);
  }
}

}  // namespace cuda

void CudaOps::append_to_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v,
                              const Tensor& new_mass, int64_t first_position, const KvRetention& keep) {
  const int64_t kv_heads = cache.positions ? cache.positions.rows() : 1, capacity = cache.k.rows();
  const int64_t tokens = k.rows(), keys = cache.count + tokens;
  cuda::expect_cache(cache, k, v, new_mass, activation_, kv_heads);
  if (keys > capacity && (!cache.positions || keep.sinks + keep.heavy + keep.recent != capacity))
    fail_internal("a KV cache of {} slots gets {} tokens, and is to keep {} + {} + {}", capacity, keys,
                  keep.sinks, keep.heavy, keep.recent);
  narrow<int32_t>(first_position + tokens, "position in a KV cache");
  int32_t* targets = nullptr;
  if (cache.positions) {
    const int64_t evicted = std::max<int64_t>(0, keys - capacity);
    const int64_t pieces[] = {cuda::Workspace::aligned(kv_heads * keys * 8),
                              cuda::Workspace::aligned(kv_heads * evicted * 4),
                              cuda::Workspace::aligned(kv_heads * tokens * 4)};
    scratch_.reserve(pieces[0] + pieces[1] + pieces[2]);
    auto* const order = static_cast<uint64_t*>(scratch_.take(pieces[0]));
    auto* const victims = static_cast<int32_t*>(scratch_.take(pieces[1]));
    targets = static_cast<int32_t*>(scratch_.take(pieces[2]));
    cuda::choose_kernel<<<cuda::blocks_for(kv_heads, "KV heads"), cuda::kChoosers, 0, stream_>>>(
        {cache.positions.as<int32_t>(), cache.ranks.as<int32_t>(), cache.mass.as<float>(),
         new_mass.as<float>(), cache.positions.row_stride, cache.ranks.row_stride, cache.mass.row_stride,
         new_mass.row_stride, cache.count, tokens, first_position, evicted, keep, order, victims, targets});
    cuda::check_launch("choose_kernel");
  }
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::copy_kernel<T><<<dim3(cuda::blocks_for(tokens, "tokens"), cuda::blocks_for(kv_heads, "KV heads")),
                           cuda::kCopiers, 0, stream_>>>(
        {k.as<T>(), v.as<T>(), cache.k.as<T>(), cache.v.as<T>(), k.row_stride, v.row_stride,
         cache.k.row_stride, cache.v.row_stride, cache.count, tokens, k.row_size() / kv_heads, targets});
  });
  cuda::check_launch("copy_kernel");
}

}  // namespace sinklora
