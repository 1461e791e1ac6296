// Rows of a table by token id. Forward: T H elements read and written. Backward: columns are divided among
// the threads, each walks over the tokens in order, so that two tokens with one id are always added in the
// same order.
#include "kernels/cpu/cpu_ops.h"

namespace sinklora {
namespace {

void check_ids(const Tensor& ids, int64_t vocabulary) {
  const auto* const id = ids.as<int32_t>();
  for (int64_t t = 0; t < ids.rows(); ++t)
    if (id[t] < 0 || id[t] >= vocabulary)
      fail_input("token {} has id {}, the embedding has rows 0 to {}: data and model do not belong together",
                 t, id[t], vocabulary - 1);
}

template <class T>
void forward(Matrix<T> out, const Tensor& table, const int32_t* ids, int64_t tokens) {
#pragma omp parallel for if (tokens * table.row_size() >= kParallelElements)
  for (int64_t t = 0; t < tokens; ++t) convert_row(out.row(t), table, ids[t]);
}

template <class T>
void backward(Matrix<T> d_table, Matrix<const T> d_out, const int32_t* ids, int64_t tokens, int64_t hidden) {
  constexpr int64_t kStrip = 128;
#pragma omp parallel for if (tokens * hidden >= kParallelElements)
  for (int64_t begin = 0; begin < hidden; begin += kStrip) {
    const int64_t end = std::min(begin + kStrip, hidden);
    for (int64_t t = 0; t < tokens; ++t) {
      T* const to = d_table.row(ids[t]);
      const T* const from = d_out.row(t);
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) to[c] += from[c];
    }
  }
}

}  // namespace

void CpuOps::embedding_forward(const Tensor& out, const Tensor& table, const Tensor& ids) {
  expect(out, "embedding out", compute_, ids.rows(), table.row_size());
  expect_weight(table, "embedding table", compute_, table.rows(), table.row_size());
  expect(ids, "embedding ids", DType::i32, ids.rows(), 1);
  check_ids(ids, table.rows());
  run([&]<class T>(T) { forward<T>(matrix<T>(out), table, ids.as<int32_t>(), ids.rows()); });
}

void CpuOps::embedding_backward(const Tensor& d_table, const Tensor& d_out, const Tensor& ids) {
  expect(d_table, "embedding d_table", compute_, d_table.rows(), d_out.row_size());
  expect(d_out, "embedding d_out", compute_, ids.rows(), d_table.row_size());
  expect(ids, "embedding ids", DType::i32, ids.rows(), 1);
  check_ids(ids, d_table.rows());
  run([&]<class T>(T) {
    backward<T>(matrix<T>(d_table), matrix<const T>(d_out), ids.as<int32_t>(), ids.rows(), d_out.row_size());
  });
}

}  // namespace sinklora
