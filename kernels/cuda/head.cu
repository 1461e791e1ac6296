// LM head and cross-entropy, a chunk of rows at a time: logits = hidden W^T (f32, [chunk, V], about 256 MiB),
// then one kernel for the softmax, the loss and softmax - onehot in place, then the products back through W
// and hidden.
//   nll[t] = log sum exp(logits) - logits[target];  d_hidden = loss_scale (softmax - onehot) W
//   d_weight += loss_scale (softmax - onehot)^T hidden
// hidden, d_hidden [T, H] in bf16 or f32; weight [V, H]; d_weight [V, H] and nll [T] in f32; targets [T] in
// i32. The logits stay in f32: in bf16 a logit of 16 is off by 1/16, and so would be the loss. FLOPs: 2 T V H
// forward, 2 T V H for d_hidden, 2 T V H for d_weight. The kernel reads the logits twice, the second time
// from the L2 cache, and writes them once in the activations' type. Launch: a block per row.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kChunkBytes = int64_t{256} << 20;
constexpr int64_t kRowStep = 128;  // chunks are whole tiles of the products

// The largest of some logits, and the sum of exp(logit - largest) over them.
struct SoftmaxSum {
  float most, sum;
};
__device__ __forceinline__ SoftmaxSum merged(SoftmaxSum a, SoftmaxSum b) {
  const float most = fmaxf(a.most, b.most);
  // Without any logit yet most is -inf on a side, and its sum 0.
  const float left = a.most == most ? a.sum : a.sum * expf(a.most - most);
  const float right = b.most == most ? b.sum : b.sum * expf(b.most - most);
  return {most, left + right};
}

__device__ SoftmaxSum block_merged(SoftmaxSum own) {
  __shared__ SoftmaxSum partial[kThreads / kWarp];
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    own = merged(own, {__shfl_xor_sync(0xffffffffu, own.most, distance),
                       __shfl_xor_sync(0xffffffffu, own.sum, distance)});
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = own;
  __syncthreads();
  own = partial[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) own = merged(own, partial[warp]);
  return own;
}

// d_logits of type T lie where the row's logits lay: T is not wider than a logit, so that a step writes only
// where this or an earlier step has read.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(float* nll, float* logits, const int32_t* targets, int64_t vocabulary, bool gradient,
                         int64_t first_token, Fault* fault) {
  const int64_t row = blockIdx.x;
  float* const from = logits + row * vocabulary;
  T* const to = reinterpret_cast<T*>(from);
  const int32_t target = targets[row];
  const bool scored = target >= 0 && target < vocabulary;
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * N, step = int64_t{kThreads} * N;
  SoftmaxSum total{-INFINITY, 0};
  if (scored) {
    for (int64_t c = begin; c < vocabulary; c += step) {
      const Pack<float, N> pack = load<N>(from + c);
      float most = pack.values[0];
      for (int i = 1; i < N; ++i) most = fmaxf(most, pack.values[i]);
      float sum = 0;
      for (int i = 0; i < N; ++i) sum += expf(pack.values[i] - most);
      total = merged(total, {most, sum});
    }
    total = block_merged(total);
  }
  if (threadIdx.x == 0) {
    nll[row] = scored ? total.most - from[target] + logf(total.sum) : 0.0f;
    if (target >= vocabulary) report(fault, Fault::target, first_token + row, target, vocabulary);
  }
  if (!gradient) return;
  const float factor = 1.0f / total.sum;
  __syncthreads();  // the target's logit has been read
  for (int64_t base = 0; base < vocabulary; base += step) {
    const int64_t c = base + begin;
    Pack<T, N> result;
    if (c < vocabulary) {
      const Pack<float, N> pack = load<N>(from + c);
      for (int i = 0; i < N; ++i) {
        const float p = expf(pack.values[i] - total.most) * factor - (c + i == target ? 1.0f : 0.0f);
        result.values[i] = from_float<T>(scored ? p : 0.0f);
      }
    }
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
    if (c < vocabulary) store<N>(to + c, result);
  }
}

int64_t chunk_rows(int64_t tokens, int64_t vocabulary) {
  const int64_t wanted = kChunkBytes / (vocabulary * size_of(DType::f32)) / kRowStep * kRowStep;
  return std::min(tokens, std::max(kRowStep, wanted));
}

}  // namespace

int64_t head_scratch_bytes(int64_t tokens, int64_t vocabulary) {
  return chunk_rows(tokens, vocabulary) * vocabulary * size_of(DType::f32);
}

}  // namespace cuda

void CudaOps::head_cross_entropy(const Tensor& nll, const Tensor& d_hidden, const Tensor& d_weight,
                                 const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                                 double loss_scale) {
  const int64_t tokens = hidden.rows(), width = hidden.row_size(), vocabulary = weight.rows();
  cuda::expect(hidden, "head hidden", activation_, tokens, width);
  cuda::expect_weight(weight, "head weight", vocabulary, width);
  cuda::expect(nll, "head nll", DType::f32, tokens, 1);
  cuda::expect(targets, "head targets", DType::i32, tokens, 1);
  if (d_hidden) cuda::expect(d_hidden, "head d_hidden", activation_, tokens, width);
  if (d_weight) cuda::expect(d_weight, "head d_weight", DType::f32, vocabulary, width);
  if (tokens == 0) return;
  const int64_t chunk = cuda::chunk_rows(tokens, vocabulary);
  scratch_.reserve(cuda::head_scratch_bytes(tokens, vocabulary));
  const Tensor logits = scratch_.take(DType::f32, chunk, vocabulary);
  const Tensor matrix = converted(weight);
  Tensor d_logits = logits;
  d_logits.dtype = activation_;
  d_logits.row_stride = vocabulary * size_of(DType::f32) / size_of(activation_);
  const bool gradient = d_hidden || d_weight;
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t rows = std::min(chunk, tokens - begin);
    const Tensor x = hidden.row_slice(begin, rows), d = d_logits.row_slice(0, rows);
    (*gemm_)(logits.row_slice(0, rows), cuda::plain(x), cuda::transposed(matrix));
    cuda::with_type(activation_, [&]<class T>(T) {
      cuda::with_pack<float>(vocabulary % 4 == 0, [&]<int N>(std::integral_constant<int, N>) {
        cuda::cross_entropy_kernel<T, N><<<cuda::blocks_for(rows, "rows"), cuda::kThreads, 0, stream_>>>(
            nll.as<float>() + begin, logits.as<float>(), targets.as<int32_t>() + begin, vocabulary, gradient,
            begin, static_cast<cuda::Fault*>(fault_.get()));
      });
    });
    cuda::check_launch("cross_entropy_kernel");
    if (d_hidden) (*gemm_)(d_hidden.row_slice(begin, rows), cuda::plain(d), cuda::plain(matrix), loss_scale);
    if (d_weight) (*gemm_)(d_weight, cuda::transposed(d), cuda::plain(x), loss_scale, true);
  }
}

}  // namespace sinklora
