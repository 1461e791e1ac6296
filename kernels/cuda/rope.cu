// Rotates the halves of every head against one another, in place:  a' = a c - b s,  b' = b c + a s.
// x [T, heads D] in bf16 or f32, angles [P, D / 2] in f32. Reads and writes T heads D elements and reads T D
// angles; 3 FLOPs an element. Launch: a block per token; a thread rotates a pack of a half at a time.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int64_t kMostThreads = 256;

struct RopeShape {
  int64_t stride, pairs, angles;  // of x; heads * D / 2; P
  int half;                       // D / 2
  float sign;
};

template <class T, int N>
__global__ void rope_kernel(T* x, const int32_t* positions, const float* cosines, const float* sines,
                            RopeShape shape, Fault* fault) {
  let_next_begin();
  wait_for_earlier();
  const int64_t token = blockIdx.x;
  const int32_t position = positions[token];
  if (position < 0 || position >= shape.angles) {
    if (threadIdx.x == 0) report(fault, Fault::position, token, position, shape.angles);
    return;
  }
  const float* const cosine_row = cosines + position * static_cast<int64_t>(shape.half);
  const float* const sine_row = sines + position * static_cast<int64_t>(shape.half);
#pragma unroll 2
  for (int pair = static_cast<int>(threadIdx.x) * N; pair < shape.pairs;
       pair += static_cast<int>(blockDim.x) * N) {
    const int head = pair / shape.half, column = pair % shape.half;
    T* const first = x + token * shape.stride + static_cast<int64_t>(head) * 2 * shape.half + column;
    T* const second = first + shape.half;
    Pack<T, N> a = load<N>(first), b = load<N>(second);
    float cosine[N], sine[N];
    load_floats<N>(cosine, cosine_row, false, column);
    load_floats<N>(sine, sine_row, false, column);
    for (int i = 0; i < N; ++i) {
      const float left = to_float(a.values[i]), right = to_float(b.values[i]), s = shape.sign * sine[i];
      a.values[i] = from_float<T>(left * cosine[i] - right * s);
      b.values[i] = from_float<T>(right * cosine[i] + left * s);
    }
    store<N>(first, a);
    store<N>(second, b);
  }
}

}  // namespace
}  // namespace cuda

void CudaOps::rope(const Tensor& x, const Tensor& positions, const Tensor& cosines, const Tensor& sines,
                   int64_t head_dim, bool inverse) {
  const int64_t tokens = x.rows(), width = x.row_size(), half = head_dim / 2, angles = cosines.rows();
  if (head_dim <= 0 || head_dim % 2 != 0 || width % head_dim != 0)
    fail_internal("rope: rows of {} elements do not hold heads of {}", width, head_dim);
  cuda::expect(x, "rope x", activation_, tokens, width);
  cuda::expect(positions, "rope positions", DType::i32, tokens, 1);
  cuda::expect(cosines, "rope cosines", DType::f32, angles, half);
  cuda::expect(sines, "rope sines", DType::f32, angles, half);
  cuda::expect_contiguous(cosines, "rope cosines");
  cuda::expect_contiguous(sines, "rope sines");
  if (x.size() == 0) return;
  const cuda::RopeShape shape{x.row_stride, narrow<int32_t>(width / 2, "width of rope"), angles,
                              narrow<int>(half, "half of head_dim"), inverse ? -1.0f : 1.0f};
  const bool packed = cuda::packable(x) && half * size_of(activation_) % cuda::kPackBytes == 0 &&
                      cuda::aligned(cosines) && cuda::aligned(sines);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
      cuda::launch_beside("rope_kernel", cuda::rope_kernel<T, N>, cuda::blocks_for(tokens, "tokens"),
                          cuda::threads_for(width / 2 / N, cuda::kMostThreads), stream_, x.as<T>(),
                          positions.as<int32_t>(), cosines.as<float>(), sines.as<float>(), shape,
                          static_cast<cuda::Fault*>(fault_.get()));
    });
  });
}

}  // namespace sinklora
