// Attention backward on Hopper's tensor cores (wgmma): dQ, dK, dV from dO, recomputing P from q, k and the
// log-sum-exp.
//   P = exp(q k^T / sqrt(D) - lse),  dP = dO v^T,  dS = P (dP - delta),  delta = sum_d dO out,
//   dV = P^T dO,  dK = dS^T q / sqrt(D),  dQ = dS k / sqrt(D).
//
// Shapes and dtypes: q, out, d_q, d_out bf16 [T, Hq * D]; k, v, d_k, d_v bf16 [T, Hkv * D]; lse, delta f32
// [Hq, T]. Work: 10 D FLOP a visible pair and query head. Bytes: q and dO (and the f32 sum of dQ, twice) once
// for every 128 keys that see them, from L2 mostly. Launch: one block an SM for (sequence, query head,
// 128 keys). K, V, dK and dV stay (the latter two in registers) while the block walks the query tiles of 64
// rows, the last one first. Scores are computed transposed, [keys, queries], so that P^T is a register
// operand of dV.
//
// Two warpgroups multiply and do nothing else: a step of theirs is five products of 64 x 64 x 128 each, and
// what lies between them (exponentials, dS to shared memory, dQ to shared memory) runs beside a product that
// is under way. In the third warpgroup two warps load the query tiles through cp.async, and two, step by
// step in turn, add dQ up. They talk through named barriers.
//
// dQ is a sum over key tiles, that is over blocks. It is the same bits on every run: each query tile has a
// turn counter, key tiles add in ascending order (a bulk add in L2), and the last one, which holds the
// diagonal, rounds the sum in registers and writes d_q. Blocks draw their work by ticket, first key tiles
// first, so that what a block waits for has always begun; and all walk in one direction, so that a block is
// one step behind the one it waits for. First key tiles see most queries: the longest blocks come first, and
// short ones fill the end. (The other order, last key tiles first, left a fifth of the SMs idle at 8k.)
//
// Query heads that share a KV head add up their dK and dV in f32 by turns too, in the order of the heads. One
// block for all of them would spare that, but its blocks drift apart from head to head, and what they share
// (q, dO, the sums of dQ, of 4 heads and not of one) no longer fits the L2 cache.
//
// Sinks outside a row's own group are not visited here: attention_sinks.cu leaves their dS, and the block at
// a query tile's diagonal multiplies it into d_q. Ideas: FlashAttention-2's tiling (Dao, arXiv 2307.08691);
// FlashAttention-3's warps with one task each, and its turns.
#include <new>

#include "kernels/cuda/attention_backward_work.cuh"

namespace sinklora::cuda {
// Named, so that passes for devices whose kernels are empty find nothing unused.
namespace hopper_backward {

// c[64, 64] = x y^T over D: 64 rows of x's panels (X_ROWS rows each), all of y's.
template <int D, int X_ROWS>
__device__ __forceinline__ void multiply_rows(float (&c)[8][4], uint32_t x, uint32_t y) {
  const uint64_t from_x = matrix_descriptor(x, 0), from_y = matrix_descriptor(y, 0);
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    wgmma<0, 0>(c, further(from_x, step / 4 * X_ROWS * 128 + step % 4 * 32),
                further(from_y, step / 4 * queries * 128 + step % 4 * 32), step > 0);
  wgmma_commit();
}

// c[64 keys, D] += x y over the 64 queries: x in registers, y's panels [64, D].
template <int D>
__device__ __forceinline__ void multiply_columns(float (&c)[D / 8][4], const uint32_t (&x)[4][4],
                                                 uint32_t y) {
  const uint64_t from_y = matrix_descriptor(y, queries * 128);
#pragma unroll
  for (int step = 0; step < queries / 16; ++step) wgmma<1>(c, x[step], further(from_y, step * 16 * 128), 1);
  wgmma_commit();
}

// s becomes P from raw scores: its columns are queries, its rows keys, `row` the lane's first.
template <int D>
__device__ __forceinline__ void to_probabilities(float (&s)[8][4], const char* generic, bool masked,
                                                 int buffer, float scale_log2, int row, int lane) {
  const auto* lse =
      reinterpret_cast<const float2*>(generic + BackwardShared<D>::lse) + buffer * (queries / 2);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 reference = lse[n * 4 + (lane & 3)];
#pragma unroll
    for (int c = 0; c < 4; ++c)
      s[n][c] = fast_exp2(fmaf(s[n][c], scale_log2, -log2_e * (c & 1 ? reference.y : reference.x)));
  }
  if (!masked) return;  // a branch in the loop above would take it apart
  const auto* seen =
      reinterpret_cast<const uint64_t*>(generic + BackwardShared<D>::seen) + buffer * keys + row;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint64_t by = seen[r * 8] >> 2 * (lane & 3);
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (!(by >> (n * 8 + c) & 1)) s[n][2 * r + c] = 0;
  }
}

// The same number, behind the compiler's back: what is computed from it is not computed ahead, where it would
// take registers from the loop over steps.
__device__ __forceinline__ int apart(int x) {
  asm volatile("" : "+r"(x));
  return x;
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
    thread = apart(thread);
    barrier_sync(products, product_threads);
    load_sink_keys<D>(a, w, memory, sink, thread);
    if (sink > 0) load_sink_scores<product_threads>(a, w, tile, d_s, sink, thread);
    copy_async_commit();
    copy_async_wait<0>();
    fence_for_async_reads();
    barrier_sync(products, product_threads);
    if (sink == 0) return;
  }
}

// The last part of a tile's d_q: reads the sum of the others, if there are any, and writes d_q. `from`: where
// the lane's first two numbers lie in the tile of sums, in bytes.
template <int D>
__device__ __forceinline__ void complete_d_q(const float (&d_q)[D / 16][4],
                                             const AttentionGradientArguments<uint16_t>& a, const Work& w,
                                             StepNote note, uint32_t from, int group, int row, int lane) {
  const int tile = note.tile(), turn = note.turn;
  const int64_t slot = w.query_slot + tile;
  if (turn > 0) {
    if (lane == 0) wait_for_turn(a.turn + slot, turn);
    __syncwarp();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = tile * queries + row + r * 8;
    const char* sum = reinterpret_cast<const char*>(a.d_q_sum + slot * (queries * D)) + r * 8 * D * 4;
    float2 before[D / 16] = {};
    if (turn > 0) {
#pragma unroll
      for (int n = 0; n < D / 16; ++n)
        before[n] = __ldcg(reinterpret_cast<const float2*>(sum + (from ^ (n << 5))));
    }
    uint16_t* to =
        a.d_q.data + (w.start + query) * a.d_q.stride + w.head * D + group * (D / 2) + 2 * (lane & 3);
#pragma unroll
    for (int n = 0; n < D / 16; ++n)
      if (query < w.length)
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            pack_bf16((d_q[n][2 * r] + before[n].x) * a.scale, (d_q[n][2 * r + 1] + before[n].y) * a.scale);
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
  const int64_t slot = w.key_slot + w.tile;
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
  int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int group = __shfl_sync(~0u, thread >> 7, 0);  // so that descriptors are computed once for a warp
  {  // of these numbers none is kept, and all are made again at the end: registers
    const int64_t kv = w.start + w.first_key, kv_column = w.kv_head * D;
    const int valid = w.last_key - w.first_key + 1;
    load_panels<product_threads, keys, D>(memory + S::k, keys * 128, a.k.data + kv * a.k.stride + kv_column,
                                          a.k.stride, valid, thread);
    load_panels<product_threads, keys, D>(memory + S::v, keys * 128, a.v.data + kv * a.v.stride + kv_column,
                                          a.v.stride, valid, thread);
  }
  if (a.pattern.num_sinks > 0) load_sink_keys<D>(a, w, memory, 0, thread);
  copy_async_commit();
  // A warpgroup has 64 of the keys, and for dQ half of the D columns.
  const uint32_t half_rows = group * 64 * 128,
                 half_columns = memory + S::k + group * (D == 128 ? keys * 128 : 64);
  int row = warp * 16 + lane / 4;  // the lane's first key
  // Where the lane writes: its row of the four 8 x 8 matrices of dS that a warp stores at once; its dQ.
  const uint32_t to_d_s = memory + S::d_s + Tile<64>::offset(warp * 16 + lane % 16, lane / 16);
  const uint32_t to_d_q =
      memory + S::d_q + 4 * gradient_offset<D>(row % 64, group * (D / 2) + 2 * (lane & 3));
  const auto q_of = [&](int buffer) { return memory + S::q + buffer * queries * D * 2; };
  float d_k[D / 8][4] = {}, d_v[D / 8][4] = {}, s[8][4];
  const float scale_log2 = a.scale * log2_e;
  copy_async_wait<0>();
  fence_for_async_reads();
  barrier_sync(products, product_threads);
  barrier_sync(q_full, product_threads + load_threads);
  wgmma_fence();
  multiply_rows<D, keys>(s, memory + S::k + half_rows, q_of(0));
  wgmma_wait<0>();
  for (int step = 0;; ++step) {
    const int buffer = step & 1;
    barrier_sync(d_out_full + buffer, product_threads + load_threads);
    const StepNote note = notes<D>(generic)[step & 3];
    const uint32_t d_out = memory + S::d_out + buffer * queries * D * 2;
    const auto* delta = reinterpret_cast<const float2*>(generic + S::delta) + buffer * (queries / 2);

    float d_p[8][4];
    wgmma_fence();
    multiply_rows<D, keys>(d_p, memory + S::v + half_rows, d_out);
    barrier_arrive(empty + (buffer ^ 1), product_threads + load_threads);
    to_probabilities<D>(s, generic, note.is(StepNote::masked), buffer, scale_log2, row, lane);
    uint32_t p[4][4];
    to_operand<queries>(p, s);
    wgmma_fence();
    multiply_columns<D>(d_v, p, d_out);
    wgmma_wait<1>();  // for d_p
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t d_s[4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float2 shift = delta[(n + m) * 4 + (lane & 3)];
#pragma unroll
        for (int r = 0; r < 2; ++r)
          d_s[2 * m + r] = pack_bf16(s[n + m][2 * r] * (d_p[n + m][2 * r] - shift.x),
                                     s[n + m][2 * r + 1] * (d_p[n + m][2 * r + 1] - shift.y));
      }
      store_matrix(to_d_s ^ (n << 4), d_s);
    }
    barrier_sync(q_full + (buffer ^ 1), product_threads + load_threads);
    fence_for_async_reads();
    barrier_sync(products, product_threads);

    float d_q[D / 16][4];
    const uint64_t d_s_rows = matrix_descriptor(memory + S::d_s + half_rows, 0),
                   d_s_columns = matrix_descriptor(memory + S::d_s, 0),
                   k_columns = matrix_descriptor(half_columns, 0),
                   q_rows = matrix_descriptor(q_of(buffer), queries * 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < keys / 16; ++i)
      wgmma<1, 1>(d_q, further(d_s_columns, i * 16 * 128), further(k_columns, i * 16 * 128), i > 0);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < queries / 16; ++i)
      wgmma<0, 1>(d_k, further(d_s_rows, i * 32), further(q_rows, i * 16 * 128), 1);
    wgmma_commit();
    // The next step's, which run while d_q is stored. Behind the last step, too, where nobody looks at them: a
    // branch around them would serialize all products.
    multiply_rows<D, keys>(s, memory + S::k + half_rows, q_of(buffer ^ 1));
    wgmma_wait<2>();  // for d_q
    if (note.is(StepNote::adds_sinks))
      add_sinks<D>(d_q, a, w, note.tile(), memory, memory + S::sink_d_s + buffer * queries * 128, group,
                   thread);
    barrier_sync(freed + (buffer ^ 1), product_threads + sum_threads);
    if (note.is(StepNote::completes_d_q))
      complete_d_q<D>(d_q, a, w, note, to_d_q - memory - S::d_q, group, row % 64, lane);
    else
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int n = 0; n < D / 16; ++n)
          store_shared((to_d_q ^ (n << 5)) + r * 8 * D * 4, d_q[n][2 * r], d_q[n][2 * r + 1]);
    fence_for_async_reads();
    barrier_arrive(written + buffer, product_threads + sum_threads);
    wgmma_wait<0>();
    if (note.is(StepNote::last_step)) break;
  }

  thread = apart(thread), lane = thread & 31, warp = thread >> 5, row = warp * 16 + lane / 4;
  const int64_t kv = w.start + w.first_key, kv_column = w.kv_head * D;
  const int valid = w.last_key - w.first_key + 1;
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
  // Registers go where the accumulators are: 256 x 240 + 128 x 24 is what 384 x 168 allows, and so is the other.
  constexpr int most = D == 128 ? 240 : 208, rest = D == 128 ? 24 : 88;
  if (threadIdx.x < product_threads) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(most));
    multiply<D>(a, w, memory, generic);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(rest));
    const int warp = threadIdx.x / 32 - product_threads / 32;
    if (warp < 2)
      add_all<D>(a, w, memory, generic, warp, threadIdx.x % 32);
    else
      load_all<D>(a, w, memory, generic, threadIdx.x - product_threads - 2 * sum_threads);
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
