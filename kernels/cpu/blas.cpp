#include "kernels/cpu/blas.h"

#include <cblas.h>

#include <algorithm>
#include <type_traits>

#include "base/error.h"

namespace sinklora {
namespace {

// A build of OpenBLAS with threads of its own must not use them. Its OpenMP build has none inside our
// parallel loops, and setting their number would set that of our loops.
void keep_to_one_thread() {
  constexpr int kOpenMp = 2;
  static const bool done = [] {
    if (openblas_get_parallel() != kOpenMp) openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
}

CBLAS_TRANSPOSE flag(Layout layout) { return layout == Layout::plain ? CblasNoTrans : CblasTrans; }

// `count` in near-equal parts of about `wanted`, borders at multiples of the kernels' 16.
struct Parts {
  int64_t size, count;
  Parts(int64_t total, int64_t wanted) {
    const int64_t parts = (total + wanted - 1) / wanted;
    size = ((total + parts - 1) / parts + 15) / 16 * 16;
    count = (total + size - 1) / size;
  }
};

}  // namespace

template <class T>
void gemm_on_this_thread(Layout layout_a, Layout layout_b, int64_t m, int64_t n, int64_t k, T alpha,
                         Matrix<T> a, Matrix<T> b, T beta, Matrix<T> c) {
  const auto fits = [](int64_t size) { return narrow<blasint>(size, "a dimension of a matrix product"); };
  // A single row may have any stride, yet the library wants at least a row's length.
  const auto leading = [&](int64_t stride, int64_t columns) {
    return fits(std::max({stride, columns, int64_t{1}}));
  };
  const auto call = [&](auto* function) {
    keep_to_one_thread();
    function(CblasRowMajor, flag(layout_a), flag(layout_b), fits(m), fits(n), fits(k), alpha, a.data,
             leading(a.stride, layout_a == Layout::plain ? k : m), b.data,
             leading(b.stride, layout_b == Layout::plain ? n : k), beta, c.data, leading(c.stride, n));
  };
  if constexpr (std::is_same_v<T, float>)
    call(&cblas_sgemm);
  else
    call(&cblas_dgemm);
}

template <class T>
void gemm(Layout layout_a, Layout layout_b, int64_t m, int64_t n, int64_t k, T alpha, Matrix<T> a,
          Matrix<T> b, T beta, Matrix<T> c) {
  if (m == 0 || n == 0) return;
  if (m * n * k <= kSerialGemm) return gemm_on_this_thread(layout_a, layout_b, m, n, k, alpha, a, b, beta, c);
  // An error must not leave a parallel region: everything that can fail is tried before.
  for (const int64_t size : {m, n, k, a.stride, b.stride, c.stride})
    narrow<blasint>(size, "a matrix product");
  // Measured on shapes of SmolLM2-135M: smaller tiles copy their operands more often, larger ones balance
  // worse.
  const Parts down(m, n <= 64 ? 128 : 256), across(n, m <= 64 ? 128 : 512);
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t j = 0; j < across.count; ++j) {
    for (int64_t i = 0; i < down.count; ++i) {
      const int64_t row = i * down.size, column = j * across.size;
      gemm_on_this_thread(layout_a, layout_b, std::min(down.size, m - row), std::min(across.size, n - column),
                          k, alpha, layout_a == Layout::plain ? a.at(row, 0) : a.at(0, row),
                          layout_b == Layout::plain ? b.at(0, column) : b.at(column, 0), beta,
                          c.at(row, column));
    }
  }
}

template void gemm(Layout, Layout, int64_t, int64_t, int64_t, float, Matrix<float>, Matrix<float>, float,
                   Matrix<float>);
template void gemm(Layout, Layout, int64_t, int64_t, int64_t, double, Matrix<double>, Matrix<double>, double,
                   Matrix<double>);
template void gemm_on_this_thread(Layout, Layout, int64_t, int64_t, int64_t, float, Matrix<float>,
                                  Matrix<float>, float, Matrix<float>);
template void gemm_on_this_thread(Layout, Layout, int64_t, int64_t, int64_t, double, Matrix<double>,
                                  Matrix<double>, double, Matrix<double>);

}  // namespace sinklora
