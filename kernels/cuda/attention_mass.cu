// The attention that each key receives from a chunk of queries, once their log-sum-exp is known:
//   mass[g, j] = sum over queries i that see key j and query heads h of KV head g of exp(q_hi k_gj / sqrt(D)
//   - lse_hi).
// The last query sees all keys, the one before it all but the last, and so on.
//
// q bf16 [n, Hq D], k bf16 [count + n, Hkv D], lse f32 [Hq, n], mass f32. 2 D FLOP a visible pair and query
// head on tensor cores (mma.sync, sm_80 and later); nothing of size n x keys leaves a warp's registers. A
// block owns 128 keys of a KV head and goes over the query heads and tiles of 64 queries that see them, in
// order, double-buffered through cp.async: nothing is added across blocks. Keys that more queries see come
// first. Launch: (keys / 128, Hkv) x 256.
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_cache.h"

namespace sinklora::cuda {
namespace {

constexpr int kKeys = 128;  // of a block, 16 a warp

struct MassArguments {
  Rows<const uint16_t> q, k;
  Rows<const float> lse;
  Rows<float> mass, new_mass;
  int count, tokens;
  int64_t group;
  float scale_log2;
};

template <int D>
struct MassShared {  // byte offsets, behind the keys
  static constexpr uint32_t q = kKeys / mma_tile * mma_tile_bytes<D>, lse = q + 2 * mma_tile_bytes<D>;
  static constexpr uint32_t bytes = lse + 2 * mma_tile * 4;
};

template <int D>
__global__ void __launch_bounds__(mma_threads) mass_kernel(MassArguments a) {
  using S = MassShared<D>;
  extern __shared__ __align__(128) char generic[];
  const uint32_t memory = shared_address(generic);
  const auto* const lse = reinterpret_cast<const float*>(generic + S::lse);
  const int thread = threadIdx.x, lane = thread & 31, row = (thread >> 5) * 16;
  const int first = static_cast<int>(blockIdx.x) * kKeys, keys = a.count + a.tokens;
  const int64_t kv_head = blockIdx.y, column = kv_head * D;
  const int first_tile = max(0, first - a.count) / mma_tile, tiles = (a.tokens + mma_tile - 1) / mma_tile;
  const int steps = (tiles - first_tile) * static_cast<int>(a.group);
  const auto load_step = [&](int step) {
    const int64_t head = kv_head * a.group + step / (tiles - first_tile);
    const int begin = (first_tile + step % (tiles - first_tile)) * mma_tile, valid = a.tokens - begin;
    load_tile<D, mma_tile, mma_threads>(memory + S::q + step % 2 * mma_tile_bytes<D>,
                                        a.q.data + begin * a.q.stride + head * D, a.q.stride, valid, thread);
    if (thread < mma_tile)
      copy_async_4(memory + S::lse + (step % 2 * mma_tile + thread) * 4,
                   a.lse.data + head * a.lse.stride + begin + (thread < valid ? thread : 0), thread < valid);
    copy_async_commit();
  };
  load_tile<D, kKeys, mma_threads>(memory, a.k.data + first * a.k.stride + column, a.k.stride, keys - first,
                                   thread);
  load_step(0);
  copy_async_wait<0>();
  __syncthreads();
  uint32_t k[D / 16][4];
  load_rows<D>(k, memory, row, lane);

  float total[2] = {};
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<0>();
    __syncthreads();  // this step is there, and everyone is done with the buffer of the next
    if (step + 1 < steps) load_step(step + 1);
    const int begin = (first_tile + step % (tiles - first_tile)) * mma_tile;
    float s[mma_tile / 8][4] = {};
    multiply_rows<D>(s, k, memory + S::q + step % 2 * mma_tile_bytes<D>, lane);
    const bool masked = begin + mma_tile > a.tokens || a.count + begin < first + row + 15;
    const float* const own_lse = lse + step % 2 * mma_tile;
#pragma unroll
    for (int n = 0; n < mma_tile / 8; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int query = n * 8 + 2 * (lane & 3) + c;
        const float reference = own_lse[query] * log2_e;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int key = first + row + r * 8 + lane / 4;
          const bool seen = !masked || (begin + query < a.tokens && key <= a.count + begin + query);
          const float p = fast_exp2(fmaf(s[n][2 * r + c], a.scale_log2, -reference));
          total[r] += seen ? p : 0.0f;
        }
      }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = total[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int key = first + row + r * 8 + lane / 4;
    if ((lane & 3) != 0 || key >= keys) continue;
    if (key < a.count)
      a.mass.data[kv_head * a.mass.stride + key] += sum;
    else
      a.new_mass.data[kv_head * a.new_mass.stride + key - a.count] = sum;
  }
}

template <int D>
void launch(const MassArguments& a, int64_t kv_heads, cudaStream_t stream) {
  check_attention(cudaFuncSetAttribute(mass_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(MassShared<D>::bytes)),
                  "attention mass");
  const unsigned tiles = attention_blocks((a.count + a.tokens + kKeys - 1) / kKeys, "attention mass");
  mass_kernel<D><<<dim3(tiles, attention_blocks(kv_heads, "attention mass")), mma_threads,
                   MassShared<D>::bytes, stream>>>(a);
  check_attention(cudaGetLastError(), "attention mass");
}

}  // namespace

void add_mass(const Tensor& mass, const Tensor& new_mass, const Tensor& q, const Tensor& k, const Tensor& lse,
              int64_t count, int64_t head_dim, cudaStream_t stream) {
  const int64_t heads = q.row_size() / head_dim, kv_heads = k.row_size() / head_dim;
  const MassArguments a{.q = {q.as<uint16_t>(), q.row_stride},
                        .k = {k.as<uint16_t>(), k.row_stride},
                        .lse = {lse.as<float>(), lse.row_stride},
                        .mass = {mass.as<float>(), mass.row_stride},
                        .new_mass = {new_mass.as<float>(), new_mass.row_stride},
                        .count = narrow<int32_t>(count, "tokens in a cache"),
                        .tokens = narrow<int32_t>(q.rows(), "tokens"),
                        .group = heads / kv_heads,
                        .scale_log2 = static_cast<float>(log2_e / std::sqrt(static_cast<double>(head_dim)))};
  head_dim == 64 ? launch<64>(a, kv_heads, stream) : launch<128>(a, kv_heads, stream);
}

}  // namespace sinklora::cuda
