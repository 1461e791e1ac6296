// RMSNorm and the residual sum in front of it. Row sums run in double: they are free beside the memory
// traffic, and the error of r stays below that of one rounding whatever the hidden size.
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_ops.h"

namespace sinklora {
namespace {

template <class T>
std::vector<T> as_row(const Tensor& gain) {
  std::vector<T> row(static_cast<size_t>(gain.size()));
  convert(row.data(), gain.data, gain.dtype, gain.size());
  return row;
}

template <class T>
void normalize(T* normed, const T* x, T reciprocal, const T* gain, int64_t hidden) {
#pragma omp simd
  for (int64_t c = 0; c < hidden; ++c) normed[c] = gain[c] * (x[c] * reciprocal);
}

// delta may be nowhere; then x is the sum.
template <class T>
void forward(Matrix<T> sum, Matrix<T> normed, T* reciprocal, Matrix<const T> x, Matrix<const T> delta,
             const T* gain, double epsilon, int64_t tokens, int64_t hidden) {
#pragma omp parallel for if (tokens * hidden >= kParallelElements)
  for (int64_t t = 0; t < tokens; ++t) {
    const T* from = x.row(t);
    if (delta.data) {
      const T* const added = delta.row(t);
      T* const to = sum.row(t);
#pragma omp simd
      for (int64_t c = 0; c < hidden; ++c) to[c] = from[c] + added[c];
      from = to;
    }
    double squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < hidden; ++c)
      squares += static_cast<double>(from[c]) * static_cast<double>(from[c]);
    reciprocal[t] = static_cast<T>(1.0 / std::sqrt(squares / static_cast<double>(hidden) + epsilon));
    normalize(normed.row(t), from, reciprocal[t], gain, hidden);
  }
}

template <class T>
void backward_x(Matrix<T> d_x, Matrix<const T> d_normed, Matrix<const T> x, const T* reciprocal,
                const T* gain, int64_t tokens, int64_t hidden) {
#pragma omp parallel for if (tokens * hidden >= kParallelElements)
  for (int64_t t = 0; t < tokens; ++t) {
    const T *const dy = d_normed.row(t), *const in = x.row(t);
    T* const dx = d_x.row(t);
    double dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < hidden; ++c)
      dot += static_cast<double>(gain[c] * dy[c]) * static_cast<double>(in[c]);
    const T r = reciprocal[t];
    const T along = static_cast<T>(dot / static_cast<double>(hidden)) * r * r;
#pragma omp simd
    for (int64_t c = 0; c < hidden; ++c) dx[c] += r * (gain[c] * dy[c] - in[c] * along);
  }
}

// Columns are divided among the threads, each sums over the tokens in order.
template <class T>
void backward_gain(T* d_gain, Matrix<const T> d_normed, Matrix<const T> x, const T* reciprocal,
                   int64_t tokens, int64_t hidden) {
  constexpr int64_t kStrip = 64;
#pragma omp parallel for if (tokens * hidden >= kParallelElements)
  for (int64_t begin = 0; begin < hidden; begin += kStrip) {
    const int64_t width = std::min(kStrip, hidden - begin);
    double sums[kStrip] = {};
    for (int64_t t = 0; t < tokens; ++t) {
      const T *const dy = d_normed.row(t) + begin, *const in = x.row(t) + begin;
      const T r = reciprocal[t];
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) sums[c] += static_cast<double>(dy[c] * (in[c] * r));
    }
    for (int64_t c = 0; c < width; ++c) d_gain[begin + c] += static_cast<T>(sums[c]);
  }
}

}  // namespace

void CpuOps::residual_rmsnorm_forward(const Tensor& sum, const Tensor& normed, const Tensor& reciprocal,
                                      const Tensor& x, const Tensor& delta, const Tensor& gain,
                                      double epsilon) {
  const int64_t tokens = x.rows(), hidden = x.row_size();
  expect(x, "rmsnorm x", compute_, tokens, hidden);
  expect(normed, "rmsnorm normed", compute_, tokens, hidden);
  expect(reciprocal, "rmsnorm reciprocal", compute_, tokens, 1);
  expect_weight(gain, "rmsnorm gain", compute_, hidden, 1);
  if (delta) {
    expect(delta, "rmsnorm delta", compute_, tokens, hidden);
    expect(sum, "rmsnorm sum", compute_, tokens, hidden);
  }
  run([&]<class T>(T) {
    forward<T>(matrix<T>(sum), matrix<T>(normed), reciprocal.as<T>(), matrix<const T>(x),
               matrix<const T>(delta), as_row<T>(gain).data(), epsilon, tokens, hidden);
  });
}

void CpuOps::rmsnorm_rebuild(const Tensor& normed, const Tensor& x, const Tensor& reciprocal,
                             const Tensor& gain) {
  const int64_t tokens = x.rows(), hidden = x.row_size();
  expect(x, "rmsnorm x", compute_, tokens, hidden);
  expect(normed, "rmsnorm normed", compute_, tokens, hidden);
  expect(reciprocal, "rmsnorm reciprocal", compute_, tokens, 1);
  expect_weight(gain, "rmsnorm gain", compute_, hidden, 1);
  run([&]<class T>(T) {
    const std::vector<T> row = as_row<T>(gain);
#pragma omp parallel for if (tokens * hidden >= kParallelElements)
    for (int64_t t = 0; t < tokens; ++t)
      normalize<T>(matrix<T>(normed).row(t), matrix<T>(x).row(t), reciprocal.as<T>()[t], row.data(), hidden);
  });
}

void CpuOps::rmsnorm_backward(const Tensor& d_x, const Tensor& d_gain, const Tensor& d_normed,
                              const Tensor& x, const Tensor& reciprocal, const Tensor& gain) {
  const int64_t tokens = x.rows(), hidden = x.row_size();
  expect(x, "rmsnorm x", compute_, tokens, hidden);
  expect(d_x, "rmsnorm d_x", compute_, tokens, hidden);
  expect(d_normed, "rmsnorm d_normed", compute_, tokens, hidden);
  expect(reciprocal, "rmsnorm reciprocal", compute_, tokens, 1);
  expect_weight(gain, "rmsnorm gain", compute_, hidden, 1);
  if (d_gain) expect(d_gain, "rmsnorm d_gain", compute_, hidden, 1);
  run([&]<class T>(T) {
    if (d_gain)
      backward_gain<T>(d_gain.as<T>(), matrix<const T>(d_normed), matrix<const T>(x), reciprocal.as<T>(),
                       tokens, hidden);
    backward_x<T>(matrix<T>(d_x), matrix<const T>(d_normed), matrix<const T>(x), reciprocal.as<T>(),
                  as_row<T>(gain).data(), tokens, hidden);
  });
}

}  // namespace sinklora
