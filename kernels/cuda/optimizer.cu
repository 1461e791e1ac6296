// AdamW and the sum of squares for the gradient's norm. Everything f32, the working copy in any float type.
//   g' = scale g;  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;
//   w = w - lr decay w - lr mhat / (sqrt(vhat) + epsilon)
// AdamW moves 28 bytes an element and 2 more for a bf16 copy; the sum 4 bytes. Launch: a thread per four
// elements; the sum has a block per 64 Ki elements, whose f64 results one block adds in order.
#include <cmath>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSumBlock = int64_t{1} << 16;  // elements; fixes the order of sum_of_squares

struct Factors {
  float beta1, other1, beta2, other2, rate, root, decay, epsilon, scale;
};

template <class Working, int N>
__global__ void adamw_kernel(Working* working, float* master, const float* gradient, float* m, float* v,
                             int64_t count, Factors f) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= count) return;
  Pack<float, N> w = load<N>(master + i), first = load<N>(m + i), second = load<N>(v + i);
  const Pack<float, N> g = load<N>(gradient + i);
  for (int j = 0; j < N; ++j) {
    const float scaled = f.scale * g.values[j];
    first.values[j] = f.beta1 * first.values[j] + f.other1 * scaled;
    second.values[j] = f.beta2 * second.values[j] + f.other2 * scaled * scaled;
    w.values[j] = w.values[j] - f.decay * w.values[j] -
                  f.rate * first.values[j] / (sqrtf(second.values[j]) * f.root + f.epsilon);
  }
  store<N>(master + i, w);
  store<N>(m + i, first);
  store<N>(v + i, second);
  if (!working) return;
  for (int j = 0; j < N; ++j) working[i + j] = from_float<Working>(w.values[j]);
}

__device__ double block_sum_f64(double x, double* partial) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) total += partial[warp];
  return total;
}

template <class T, int N>
__global__ void squares_kernel(double* sums, const T* x, int64_t count) {
  __shared__ double partial[kThreads / kWarp];
  const int64_t begin = blockIdx.x * kSumBlock, end = begin + kSumBlock < count ? begin + kSumBlock : count;
  double sum = 0;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * N; i < end; i += kThreads * N) {
    const Pack<T, N> pack = load<N>(x + i);
    for (int j = 0; j < N; ++j) {
      const auto value = static_cast<double>(to_float(pack.values[j]));
      sum += value * value;
    }
  }
  sum = block_sum_f64(sum, partial);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void total_kernel(double* total, const double* sums, int64_t count) {
  __shared__ double partial[kThreads / kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += sums[i];
  sum = block_sum_f64(sum, partial);
  if (threadIdx.x == 0) *total = sum;
}

}  // namespace
}  // namespace cuda

void CudaOps::adamw(const Tensor& working, const Tensor& master, const Tensor& gradient, const Tensor& m,
                    const Tensor& v, const AdamWStep& step) {
  const int64_t rows = master.rows(), columns = master.row_size(), count = master.size();
  bool packed = count % 4 == 0;
  for (const auto& [tensor, name] :
       {std::pair{&master, "adamw master"}, std::pair{&gradient, "adamw gradient"}, std::pair{&m, "adamw m"},
        std::pair{&v, "adamw v"}}) {
    cuda::expect(*tensor, name, DType::f32, rows, columns);
    cuda::expect_contiguous(*tensor, name);
    packed = packed && cuda::aligned(*tensor);
  }
  if (count == 0) return;
  const auto updates = static_cast<double>(step.step);
  const auto narrowed = [](double x) { return static_cast<float>(x); };
  const cuda::Factors factors{narrowed(step.beta1),
                              narrowed(1 - step.beta1),
                              narrowed(step.beta2),
                              narrowed(1 - step.beta2),
                              narrowed(step.learning_rate / (1 - std::pow(step.beta1, updates))),
                              narrowed(1 / std::sqrt(1 - std::pow(step.beta2, updates))),
                              narrowed(step.learning_rate * step.weight_decay),
                              narrowed(step.epsilon),
                              narrowed(step.gradient_scale)};
  const bool separate = working.data != master.data;
  const bool fused =
      separate && working.dtype != DType::f64 && working.dtype != DType::f16 && working.contiguous();
  if (separate) cuda::expect(working, "adamw working", working.dtype, rows, columns);
  cuda::with_type(fused ? working.dtype : DType::f32, [&]<class Working>(Working) {
    cuda::with_pack<float>(packed, [&]<int N>(std::integral_constant<int, N>) {
      const int64_t each = int64_t{cuda::kThreads} * N;
      cuda::adamw_kernel<Working, N>
          <<<cuda::blocks_for((count + each - 1) / each, "elements"), cuda::kThreads, 0, stream_>>>(
              fused ? working.as<Working>() : nullptr, master.as<float>(), gradient.as<float>(),
              m.as<float>(), v.as<float>(), count, factors);
    });
  });
  cuda::check_launch("adamw_kernel");
  if (separate && !fused) copy(working, master);
}

double CudaOps::sum_of_squares(const Tensor& x) {
  cuda::expect(x, "sum_of_squares", x.dtype, x.rows(), x.row_size());
  cuda::expect_contiguous(x, "sum_of_squares");
  const int64_t blocks = (x.size() + cuda::kSumBlock - 1) / cuda::kSumBlock;
  const int64_t bytes = (blocks + 1) * size_of(DType::f64);
  scratch_.reserve(bytes);
  auto* const total = static_cast<double*>(scratch_.take(bytes));
  if (blocks > 0) {
    cuda::with_type(x.dtype, [&]<class T>(T) {
      const bool packed = cuda::aligned(x) && x.size() % (cuda::kPackBytes / size_of(x.dtype)) == 0;
      cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
        cuda::squares_kernel<T, N>
            <<<cuda::blocks_for(blocks, "blocks of a sum"), cuda::kThreads, 0, stream_>>>(
                total + 1, x.as<T>(), x.size());
      });
    });
    cuda::check_launch("squares_kernel");
  }
  cuda::total_kernel<<<1, cuda::kThreads, 0, stream_>>>(total, total + 1, blocks);
  cuda::check_launch("total_kernel");
  auto* const answer = reinterpret_cast<double*>(static_cast<char*>(answer_.get()) + 128);
  SINKLORA_CUDA(cudaMemcpyAsync(answer, total, sizeof *answer, cudaMemcpyDeviceToHost, stream_));
  wait();
  return *answer;
}

}  // namespace sinklora
