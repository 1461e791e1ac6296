// y = x W^T + scale (x A^T) B^T and its backward, on cuBLASLt.
// x [T, in], y [T, out], u = x A^T [T, R], all adapters' A and B in the activations' type; parameter
// gradients in f32. FLOPs forward 2 T in out + 2 T R (in + out); backward as much again for d_x, and 2 T R
// (in + out) for dA and dB.
//
// The adapters' part goes first and the large product is added onto it: an accumulating product reads y while
// it computes, where an addition afterwards would be a pass over y of its own, and y is rounded when the
// small part is in it. For this, the adapters' B become one [out, R] matrix with a block for each adapter and
// zeros elsewhere: one thin product instead of one for each adapter. Packing it moves 2 out R elements.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_few_rows.h"

namespace sinklora {
namespace cuda {
namespace {

constexpr int kMostAdapters = 8;
constexpr int kThreads = 256;

template <class T>
struct Blocks {
  int64_t count, out, rank;
  struct Block {
    const T* b;
    int64_t stride, row_begin, rows, column_begin, columns;
    float factor;
  } block[kMostAdapters];
};

template <class T>
__global__ void pack_blocks_kernel(T* packed, Blocks<T> from) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= from.out * from.rank) return;
  const int64_t row = i / from.rank, column = i % from.rank;
  float value = 0;
  for (int64_t n = 0; n < from.count; ++n) {
    const auto& block = from.block[n];
    const int64_t r = row - block.row_begin, c = column - block.column_begin;
    if (r >= 0 && r < block.rows && c >= 0 && c < block.columns)
      value = block.factor * to_float(block.b[r * block.stride + c]);
  }
  packed[i] = from_float<T>(value);
}

// The A of all adapters as the one [R, in] matrix that they are in memory.
Tensor stacked_a(const Linear& linear, DType activation, int64_t in, int64_t out) {
  Tensor all;
  int64_t rank = 0;
  for (const LinearAdapter& adapter : linear.adapters) {
    const int64_t outputs = adapter.b.rows();
    expect(adapter.a, "linear adapter A", activation, adapter.a.rows(), in);
    expect(adapter.b, "linear adapter B", activation, outputs, adapter.a.rows());
    expect_contiguous(adapter.a, "linear adapter A");
    if (adapter.row_begin < 0 || adapter.row_begin + outputs > out)
      fail_internal("a linear adapter adds to outputs [{}, {}) of {}", adapter.row_begin,
                    adapter.row_begin + outputs, out);
    if (adapter.u_begin == 0) all = adapter.a;
    rank += adapter.a.rows();
  }
  for (const LinearAdapter& adapter : linear.adapters)
    if (adapter.u_begin + adapter.a.rows() > rank || !all ||
        all.as<char>() + adapter.u_begin * in * size_of(activation) != adapter.a.data)
      fail_internal("the A matrices of a linear's adapters do not lie behind one another at their u_begin");
  all.shape[0] = rank;
  return all;
}

// The gradients of all A as one matrix, if they lie behind one another as the A do; nothing otherwise.
Tensor stacked_gradients(const LinearGradient& gradient, const Linear& linear, int64_t in) {
  Tensor all;
  for (size_t i = 0; i < linear.adapters.size(); ++i)
    if (linear.adapters[i].u_begin == 0) all = gradient.adapters[i].a;
  for (size_t i = 0; i < linear.adapters.size(); ++i)
    if (!gradient.adapters[i].a.contiguous() ||
        all.as<float>() + linear.adapters[i].u_begin * in != gradient.adapters[i].a.as<float>())
      return {};
  for (const LinearAdapter& adapter : linear.adapters)
    all.shape[0] = std::max(all.shape[0], adapter.u_begin + adapter.a.rows());
  return all;
}

// All B as one matrix, to be multiplied by `scale`.
struct StackedB {
  Tensor matrix;  // [out, R]
  double scale;
};

template <class T>
void launch_packing(const Tensor& packed, const Linear& linear, double scale, cudaStream_t stream) {
  Blocks<T> blocks{static_cast<int64_t>(linear.adapters.size()), packed.rows(), packed.row_size(), {}};
  for (size_t i = 0; i < linear.adapters.size(); ++i) {
    const LinearAdapter& adapter = linear.adapters[i];
    const auto factor = static_cast<float>(adapter.scale / scale);
    blocks.block[i] = {adapter.b.as<T>(),
                       adapter.b.row_stride,
                       adapter.row_begin,
                       adapter.b.rows(),
                       adapter.u_begin,
                       adapter.a.rows(),
                       factor};
  }
  const int64_t count = (packed.size() + kThreads - 1) / kThreads;
  pack_blocks_kernel<T><<<blocks_for(count, "blocks of B"), kThreads, 0, stream>>>(packed.as<T>(), blocks);
  check_launch("pack_blocks_kernel");
}

bool covers_all(const Linear& linear, int64_t out) {
  return linear.adapters.size() == 1 && linear.adapters[0].b.rows() == out;
}

int64_t packed_bytes(const Linear& linear, const Tensor& a, int64_t out) {
  return covers_all(linear, out) ? 0 : Workspace::aligned(out * a.rows() * size_of(a.dtype));
}

StackedB stacked_b(const Linear& linear, const Tensor& a, int64_t out, Workspace& scratch,
                   cudaStream_t stream) {
  if (covers_all(linear, out)) return {linear.adapters[0].b, linear.adapters[0].scale};
  if (linear.adapters.size() > kMostAdapters)
    fail_internal("{} adapters on one linear, the kernel takes {}", linear.adapters.size(), kMostAdapters);
  const Tensor packed = scratch.take(a.dtype, out, a.rows());
  // The packed B holds scale / `largest`, which is exactly 1 where all scales are equal.
  double largest = 0;
  for (const LinearAdapter& adapter : linear.adapters)
    if (std::abs(adapter.scale) > std::abs(largest)) largest = adapter.scale;
  if (largest == 0) largest = 1;
  with_type(a.dtype, [&]<class T>(T) { launch_packing<T>(packed, linear, largest, stream); });
  return {packed, largest};
}

}  // namespace

int64_t linear_scratch_bytes(int64_t tokens, int64_t out, int64_t rank, DType activation) {
  return Workspace::aligned(out * rank * size_of(activation)) +
         Workspace::aligned(tokens * rank * size_of(activation));
}

}  // namespace cuda

void CudaOps::linear_forward(const Tensor& y, const Tensor& u, const Tensor& x, const Linear& linear,
                             bool accumulate) {
  const int64_t tokens = x.rows(), in = linear.weight.row_size(), out = linear.weight.rows();
  cuda::expect_weight(linear.weight, "linear weight", out, in);
  cuda::expect(x, "linear x", activation_, tokens, in);
  cuda::expect(y, "linear y", activation_, tokens, out);
  if (tokens == 0) return;
  const bool adapted = !linear.adapters.empty();
  const auto multiply = [&](const Tensor& to, const Tensor& matrix, bool add) {
    if (cuda::few_rows(to, x, matrix))
      return cuda::multiply_few_rows(to, x, matrix, add, matrix.data == linear.weight.data, stream_);
    (*gemm_)(to, cuda::plain(x), cuda::transposed(matrix), 1, add);
  };
  if (adapted) {
    const Tensor a = cuda::stacked_a(linear, activation_, in, out);
    cuda::expect(u, "linear u", activation_, tokens, a.rows());
    scratch_.reserve(cuda::packed_bytes(linear, a, out));
    const cuda::StackedB b = cuda::stacked_b(linear, a, out, scratch_, stream_);
    multiply(u, a, false);
    (*gemm_)(y, cuda::plain(u), cuda::transposed(b.matrix), b.scale, accumulate);
  }
  multiply(y, converted(linear.weight), accumulate || adapted);
}

void CudaOps::linear_backward(const Tensor& d_x, const LinearGradient& gradient, const Tensor& d_y,
                              const Tensor& x, const Tensor& u, const Linear& linear, bool accumulate) {
  const int64_t tokens = d_y.rows(), in = linear.weight.row_size(), out = linear.weight.rows();
  cuda::expect_weight(linear.weight, "linear weight", out, in);
  cuda::expect(d_y, "linear d_y", activation_, tokens, out);
  if (d_x) cuda::expect(d_x, "linear d_x", activation_, tokens, in);
  if (tokens == 0) return;
  if (gradient.adapters.size() != linear.adapters.size())
    fail_internal("{} gradients for the {} adapters of a linear", gradient.adapters.size(),
                  linear.adapters.size());
  const bool adapted = !linear.adapters.empty();
  if (adapted || gradient.weight) cuda::expect(x, "linear x", activation_, tokens, in);
  if (adapted) {
    const Tensor a = cuda::stacked_a(linear, activation_, in, out);
    const int64_t rank = a.rows();
    cuda::expect(u, "linear u", activation_, tokens, rank);
    scratch_.reserve(cuda::packed_bytes(linear, a, out) +
                     cuda::Workspace::aligned(tokens * rank * size_of(activation_)));
    const cuda::StackedB b = cuda::stacked_b(linear, a, out, scratch_, stream_);
    const Tensor d_u = scratch_.take(activation_, tokens, rank);
    (*gemm_)(d_u, cuda::plain(d_y), cuda::plain(b.matrix), b.scale);
    for (size_t i = 0; i < linear.adapters.size(); ++i) {
      const LinearAdapter& adapter = linear.adapters[i];
      const int64_t rows = adapter.b.rows(), own = adapter.a.rows();
      cuda::expect(gradient.adapters[i].a, "linear dA", DType::f32, own, in);
      cuda::expect(gradient.adapters[i].b, "linear dB", DType::f32, rows, own);
      (*gemm_)(gradient.adapters[i].b, cuda::transposed(d_y.column_slice(adapter.row_begin, rows)),
               cuda::plain(u.column_slice(adapter.u_begin, own)), adapter.scale, true);
    }
    if (const Tensor d_a = cuda::stacked_gradients(gradient, linear, in)) {
      (*gemm_)(d_a, cuda::transposed(d_u), cuda::plain(x), 1, true);
    } else {
      for (size_t i = 0; i < linear.adapters.size(); ++i)
        (*gemm_)(gradient.adapters[i].a,
                 cuda::transposed(d_u.column_slice(linear.adapters[i].u_begin, linear.adapters[i].a.rows())),
                 cuda::plain(x), 1, true);
    }
    if (d_x) (*gemm_)(d_x, cuda::plain(d_u), cuda::plain(a), 1, accumulate);
  }
  if (d_x) (*gemm_)(d_x, cuda::plain(d_y), cuda::plain(converted(linear.weight)), 1, accumulate || adapted);
  if (!gradient.weight) return;
  cuda::expect(gradient.weight, "linear dW", DType::f32, out, in);
  (*gemm_)(gradient.weight, cuda::transposed(d_y), cuda::plain(x), 1, true);
}

}  // namespace sinklora
