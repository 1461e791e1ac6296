// to = from between float types, rows at any stride. Reads and writes every element once.
// Launch: 256 threads a block, 8 neighbours in a row a thread, element-wise: no loop of training comes here.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora::cuda {
namespace {

constexpr int kThreads = 256, kEach = 8;

template <class To, class From>
__device__ To convert(From x) {
  if constexpr (std::is_same_v<To, double> && std::is_same_v<From, float>)
    return static_cast<double>(x);
  else if constexpr (std::is_same_v<To, double>)
    return static_cast<double>(static_cast<float>(x));
  else
    return static_cast<To>(static_cast<float>(x));  // bf16 and half round to nearest even
}

template <class To, class From>
__global__ void conversion_kernel(To* to, const From* from, int64_t columns, int64_t to_stride,
                                  int64_t from_stride, int64_t blocks_per_row) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) / blocks_per_row;
  const int64_t first = static_cast<int64_t>(blockIdx.x) % blocks_per_row * (kThreads * kEach) + threadIdx.x;
  for (int64_t i = 0, c = first; i < kEach && c < columns; ++i, c += kThreads)
    to[row * to_stride + c] = convert<To>(from[row * from_stride + c]);
}

template <class Work>
void with_float_type(DType type, Work&& work) {
  switch (type) {
    case DType::f64:
      return work(double{});
    case DType::f32:
      return work(float{});
    case DType::bf16:
      return work(bf16{});
    case DType::f16:
      return work(__half{});
    default:
      fail_internal("{} numbers are not converted", name_of(type));
  }
}

}  // namespace

void launch_conversion(const Tensor& to, const Tensor& from, cudaStream_t stream) {
  if (to.size() == 0) return;
  const int64_t columns = to.row_size(), per_row = (columns + kThreads * kEach - 1) / (kThreads * kEach);
  const unsigned blocks = blocks_for(to.rows() * per_row, "blocks of a copy");
  with_float_type(to.dtype, [&]<class To>(To) {
    with_float_type(from.dtype, [&]<class From>(From) {
      conversion_kernel<To, From><<<blocks, kThreads, 0, stream>>>(to.as<To>(), from.as<From>(), columns,
                                                                   to.row_stride, from.row_stride, per_row);
    });
  });
  check_launch("conversion_kernel");
}

}  // namespace sinklora::cuda
