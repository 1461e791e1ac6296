// Matrix products through OpenBLAS.
//
// OpenBLAS only ever runs single-threaded here, on tiles whose borders follow from the shape alone, and our
// own loop spreads the tiles over the threads. So equal shapes give equal bits on any number of threads,
// which OpenBLAS' own threading does not promise, and thin products (LoRA) use every thread, which OpenBLAS'
// own does not.
#pragma once

#include <cstdint>

namespace sinklora {

// A row-major matrix in somebody else's memory.
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t stride = 0;  // elements from one row to the next

  T* row(int64_t r) const { return data + r * stride; }
  Matrix at(int64_t r, int64_t c) const { return {data + r * stride + c, stride}; }
};

enum class Layout : uint8_t { plain, transposed };

// C = alpha op(A) op(B) + beta C;  C [m, n], op(A) [m, k], op(B) [k, n]. With beta 0, C is not read.
template <class T>
void gemm(Layout layout_a, Layout layout_b, int64_t m, int64_t n, int64_t k, T alpha, Matrix<T> a,
          Matrix<T> b, T beta, Matrix<T> c);

// The same on the calling thread: for use inside a parallel region. Outside of one only for m n k <=
// kSerialGemm.
template <class T>
void gemm_on_this_thread(Layout layout_a, Layout layout_b, int64_t m, int64_t n, int64_t k, T alpha,
                         Matrix<T> a, Matrix<T> b, T beta, Matrix<T> c);

// OpenBLAS runs products up to this many multiply-adds on the calling thread, wherever it is called.
constexpr int64_t kSerialGemm = 200'000;

}  // namespace sinklora
