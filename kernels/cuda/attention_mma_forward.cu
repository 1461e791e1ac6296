// Attention forward on the tensor cores of sm_80 and later (mma.sync): out = softmax(q k^T / sqrt(D)) v and
// its log-sum-exp. Hopper has a faster one of its own (attention_forward.cu); this is the one to read first.
//
// Shapes and dtypes: q, out bf16 [T, Hq * D]; k, v bf16 [T, Hkv * D]; lse f32 [Hq, T]; D = 64 or 128.
// Work: 4 D FLOP a visible pair and query head. Bytes: q and out once, k and v once for every 128 queries
// that see them, from L2 mostly. Every warp reads all of a tile of K and V from shared memory for its 16
// queries: 62 bytes for 1000 FLOP, about what an A100 can do, so that shared memory and tensor cores bound it
// together. Launch: one block of 8 warps for (sequence, query head, 128 queries). A warp keeps its 16
// queries, their 16 x 64 scores and 16 x D outputs in registers. K and V are double-buffered through
// cp.async. Shared memory: two pairs of tiles of K and V [64, D]; q arrives in the second pair, out leaves
// through the first. Idea: FlashAttention-2 (Dao, arXiv 2307.08691).
#include "kernels/cuda/attention_mma.cuh"

namespace sinklora::cuda {
namespace {

template <int D>
constexpr int forward_shared = 4 * mma_tile_bytes<D> + queries_of_block * sizeof(RowBounds);

template <int D>
__global__ void __launch_bounds__(mma_threads, 1) forward_kernel(AttentionArguments<uint16_t> a) {
  extern __shared__ __align__(128) char generic[];
  const uint32_t memory = shared_address(generic), second = memory + 2 * mma_tile_bytes<D>;
  auto* bounds = reinterpret_cast<RowBounds*>(generic + 4 * mma_tile_bytes<D>);
  const QueryBlock w(a);
  if (w.empty()) return;
  const int thread = threadIdx.x, lane = thread & 31, row = (thread >> 5) * 16, first = w.first + row;
  const KeyWalk walk(a.pattern, w);

  load_tile<D, queries_of_block, mma_threads>(
      second, a.q.data + (w.start + w.first) * a.q.stride + w.head * D, a.q.stride, w.valid, thread);
  load_keys<D>(a, w, walk, 0, memory, thread);
  if (thread < queries_of_block) bounds[thread] = row_bounds(a.pattern, w.head, w.first + thread, w.length);
  copy_async_wait<0>();
  __syncthreads();
  uint32_t q[D / 16][4];
  load_rows<D>(q, second, row, lane);

  Accumulator<D> acc = {};
  acc.maximum[0] = acc.maximum[1] = -INFINITY;
  const float scale_log2 = a.scale * log2_e;
  for (int i = 0; i < walk.count; ++i) {
    copy_async_wait<0>();
    __syncthreads();  // tile i is there, and everyone is done with the buffer of tile i + 1
    if (i + 1 < walk.count) load_keys<D>(a, w, walk, i + 1, i % 2 == 0 ? second : memory, thread);
    if (walk.skipped(i, first)) continue;
    const uint32_t k = i % 2 == 0 ? memory : second, v = k + mma_tile_bytes<D>;
    float score[mma_tile / 8][4] = {}, factor[2];
    multiply_rows<D>(score, q, k, lane);
    const RowBounds* const mask = walk.masked(i) ? bounds + row : nullptr;
    if (take_softmax<mma_tile, D>(score, acc, factor, mask, walk.begin(i), scale_log2, lane))
      rescale<D>(acc.out, factor);
    uint32_t p[mma_tile / 16][4];
    to_operand<mma_tile>(p, score);
    multiply_columns<mma_tile, D>(acc.out, p, v, lane);
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = acc.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    inverse[r] = 1.0f / sum;
    const int query = first + r * 8 + lane / 4;
    if ((lane & 3) == 0 && query < w.length)
      a.lse.data[w.head * a.lse.stride + w.start + query] = acc.maximum[r] * a.scale + log2f(sum) * ln_2;
  }
  __syncthreads();
  store_rows<D>(a.out.data + (w.start + first) * a.out.stride + w.head * D, a.out.stride, w.length - first,
                memory, row, acc.out, inverse, lane);
}

template <int D>
void launch(const AttentionArguments<uint16_t>& a, cudaStream_t stream) {
  check_attention(
      cudaFuncSetAttribute(forward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, forward_shared<D>),
      "attention forward, mma");
  const unsigned blocks = attention_blocks(forward_slots(a) * a.num_heads, "attention forward, mma");
  forward_kernel<D><<<blocks, mma_threads, forward_shared<D>, stream>>>(a);
  check_attention(cudaGetLastError(), "attention forward, mma");
}

}  // namespace

void forward_mma(const AttentionArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream) {
  head_dim == 64 ? launch<64>(a, stream) : launch<128>(a, stream);
}

}  // namespace sinklora::cuda
