#include "kernels/cpu/blas.h"

#include <cblas.h>
#include <dlfcn.h>
#include <omp.h>
#include <stdlib.h>

#include <algorithm>
#include <type_traits>

#include "base/error.h"

namespace sinklora {
namespace {

struct Blas {
  decltype(&cblas_sgemm) sgemm;
  decltype(&cblas_dgemm) dgemm;
  std::string core;
};

// OpenBLAS picks its kernels once, while it is loaded, by a list of CPU models. A release older than the CPU
// falls back to its AVX2 kernels, at half the speed of the AVX-512 ones that the CPU can run: 0.3.21 does so
// on AMD family 26. Its one remedy is an environment variable that must be set before the library is loaded;
// hence it is loaded here, at first use, and not linked. What the user has set stays.
void choose_core() {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx512 && ::setenv("OPENBLAS_CORETYPE", "SkylakeX", 0) != 0)
    fail_internal("cannot set OPENBLAS_CORETYPE in the environment");
#endif
}

template <class Function>
Function symbol(void* library, const char* name) {
  void* const address = ::dlsym(library, name);
  if (!address)
    fail(ExitCode::internal, "OpenBLAS has no function {}: install libopenblas0-openmp 0.3 or later", name);
  return reinterpret_cast<Function>(address);
}

Blas load() {
  choose_core();
  std::string complaints;
  void* library = nullptr;
  for (const char* name : {SINKLORA_OPENBLAS, "libopenblas.so.0"}) {
    library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library) break;
    complaints += fmt::format("{}{}", complaints.empty() ? "" : "; ", ::dlerror());
  }
  if (!library)
    fail(ExitCode::internal, "cannot load OpenBLAS ({}): install libopenblas0-openmp", complaints);
  // A build with threads of its own must not use them. The OpenMP build has none inside our parallel loops,
  // and this call would change the number of threads of our loops.
  constexpr int kOpenMp = 2;
  if (symbol<int (*)()>(library, "openblas_get_parallel")() != kOpenMp)
    symbol<void (*)(int)>(library, "openblas_set_num_threads")(1);
  return {symbol<decltype(&cblas_sgemm)>(library, "cblas_sgemm"),
          symbol<decltype(&cblas_dgemm)>(library, "cblas_dgemm"),
          symbol<char* (*)()>(library, "openblas_get_corename")()};
}

const Blas& blas() {
  static const Blas loaded = load();
  return loaded;
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
    function(CblasRowMajor, flag(layout_a), flag(layout_b), fits(m), fits(n), fits(k), alpha, a.data,
             leading(a.stride, layout_a == Layout::plain ? k : m), b.data,
             leading(b.stride, layout_b == Layout::plain ? n : k), beta, c.data, leading(c.stride, n));
  };
  if constexpr (std::is_same_v<T, float>)
    call(blas().sgemm);
  else
    call(blas().dgemm);
}

template <class T>
void gemm(Layout layout_a, Layout layout_b, int64_t m, int64_t n, int64_t k, T alpha, Matrix<T> a,
          Matrix<T> b, T beta, Matrix<T> c) {
  if (m == 0 || n == 0) return;
  if (m * n * k <= kSerialGemm) return gemm_on_this_thread(layout_a, layout_b, m, n, k, alpha, a, b, beta, c);
  // An error must not leave a parallel region: everything that can fail is tried before.
  for (const int64_t size : {m, n, k, a.stride, b.stride, c.stride})
    narrow<blasint>(size, "a matrix product");
  blas();
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

std::string blas_core_name() { return blas().core; }

template void gemm(Layout, Layout, int64_t, int64_t, int64_t, float, Matrix<float>, Matrix<float>, float,
                   Matrix<float>);
template void gemm(Layout, Layout, int64_t, int64_t, int64_t, double, Matrix<double>, Matrix<double>, double,
                   Matrix<double>);
template void gemm_on_this_thread(Layout, Layout, int64_t, int64_t, int64_t, float, Matrix<float>,
                                  Matrix<float>, float, Matrix<float>);
template void gemm_on_this_thread(Layout, Layout, int64_t, int64_t, int64_t, double, Matrix<double>,
                                  Matrix<double>, double, Matrix<double>);

}  // namespace sinklora
