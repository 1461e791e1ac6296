// y = x W^T + scale (x A^T) B^T and its backward: products on OpenBLAS, the frozen weight in panels of rows.
// FLOPs forward: 2 T in out + 2 T R (in + out); backward as much again for d_x, and 2 T R (in + out) for dA
// and dB.
#include "kernels/cpu/cpu_ops.h"

namespace sinklora {
namespace {

constexpr Layout kPlain = Layout::plain, kTransposed = Layout::transposed;

// The A matrices of all adapters as the one [R, in] matrix that they are in memory.
struct StackedA {
  Tensor a;
  int64_t rank = 0;
};
StackedA stacked(const Linear& linear, DType compute, int64_t in, int64_t out) {
  StackedA all;
  for (const LinearAdapter& adapter : linear.adapters) {
    const int64_t rank = adapter.a.rows(), outputs = adapter.b.rows();
    expect(adapter.a, "linear adapter A", compute, rank, in);
    expect(adapter.b, "linear adapter B", compute, outputs, rank);
    expect_contiguous(adapter.a, "linear adapter A");
    if (adapter.row_begin < 0 || adapter.row_begin + outputs > out)
      fail_internal("a linear adapter adds to outputs [{}, {}) of {}", adapter.row_begin,
                    adapter.row_begin + outputs, out);
    if (adapter.u_begin == 0) all.a = adapter.a;
    all.rank += rank;
  }
  for (const LinearAdapter& adapter : linear.adapters)
    if (adapter.u_begin + adapter.a.rows() > all.rank ||
        static_cast<char*>(all.a.data) + adapter.u_begin * in * size_of(compute) != adapter.a.data)
      fail_internal("the A matrices of a linear's adapters do not lie behind one another at their u_begin");
  return all;
}

template <class T>
void forward(Matrix<T> y, Matrix<T> u, Matrix<T> x, const Linear& linear, const StackedA& stack,
             bool accumulate, int64_t tokens, Scratch& scratch) {
  const int64_t in = linear.weight.row_size();
  WeightPanels<T> panels(linear.weight, scratch);
  for (int64_t p = 0; p < panels.count(); ++p)
    gemm<T>(kPlain, kTransposed, tokens, panels.rows(p), in, 1, x, panels[p], accumulate ? 1 : 0,
            y.at(0, panels.begin(p)));
  if (stack.rank == 0) return;
  gemm<T>(kPlain, kTransposed, tokens, stack.rank, in, 1, x, matrix<T>(stack.a), 0, u);
  for (const LinearAdapter& adapter : linear.adapters)
    gemm<T>(kPlain, kTransposed, tokens, adapter.b.rows(), adapter.a.rows(), static_cast<T>(adapter.scale),
            u.at(0, adapter.u_begin), matrix<T>(adapter.b), 1, y.at(0, adapter.row_begin));
}

template <class T>
void backward(Matrix<T> d_x, const LinearGradient& gradient, Matrix<T> d_y, Matrix<T> x, Matrix<T> u,
              const Linear& linear, const StackedA& stack, bool accumulate, int64_t tokens, Scratch& weights,
              Scratch& activations) {
  const int64_t in = linear.weight.row_size(), out = linear.weight.rows();
  if (d_x.data) {
    WeightPanels<T> panels(linear.weight, weights);
    for (int64_t p = 0; p < panels.count(); ++p)
      gemm<T>(kPlain, kPlain, tokens, in, panels.rows(p), 1, d_y.at(0, panels.begin(p)), panels[p],
              accumulate || p > 0 ? 1 : 0, d_x);
  }
  if (gradient.weight)
    gemm<T>(kTransposed, kPlain, out, in, tokens, 1, d_y, x, 1, matrix<T>(gradient.weight));
  if (stack.rank == 0) return;
  const Matrix<T> d_u{activations.take<T>(tokens * stack.rank), stack.rank};
  for (const LinearAdapter& adapter : linear.adapters)
    gemm<T>(kPlain, kPlain, tokens, adapter.a.rows(), adapter.b.rows(), static_cast<T>(adapter.scale),
            d_y.at(0, adapter.row_begin), matrix<T>(adapter.b), 0, d_u.at(0, adapter.u_begin));
  if (d_x.data) gemm<T>(kPlain, kPlain, tokens, in, stack.rank, 1, d_u, matrix<T>(stack.a), 1, d_x);
  for (size_t i = 0; i < gradient.adapters.size(); ++i) {
    const LinearAdapter& adapter = linear.adapters[i];
    const int64_t rank = adapter.a.rows();
    gemm<T>(kTransposed, kPlain, adapter.b.rows(), rank, tokens, static_cast<T>(adapter.scale),
            d_y.at(0, adapter.row_begin), u.at(0, adapter.u_begin), 1, matrix<T>(gradient.adapters[i].b));
    gemm<T>(kTransposed, kPlain, rank, in, tokens, 1, d_u.at(0, adapter.u_begin), x, 1,
            matrix<T>(gradient.adapters[i].a));
  }
}

}  // namespace

void CpuOps::linear_forward(const Tensor& y, const Tensor& u, const Tensor& x, const Linear& linear,
                            bool accumulate) {
  const int64_t tokens = x.rows(), in = linear.weight.row_size(), out = linear.weight.rows();
  expect_weight(linear.weight, "linear weight", compute_, out, in);
  expect(x, "linear x", compute_, tokens, in);
  expect(y, "linear y", compute_, tokens, out);
  const StackedA stack = stacked(linear, compute_, in, out);
  if (stack.rank > 0) expect(u, "linear u", compute_, tokens, stack.rank);
  run([&]<class T>(T) {
    forward<T>(matrix<T>(y), matrix<T>(u), matrix<T>(x), linear, stack, accumulate, tokens, weights_);
  });
}

void CpuOps::linear_backward(const Tensor& d_x, const LinearGradient& gradient, const Tensor& d_y,
                             const Tensor& x, const Tensor& u, const Linear& linear, bool accumulate) {
  const int64_t tokens = d_y.rows(), in = linear.weight.row_size(), out = linear.weight.rows();
  expect_weight(linear.weight, "linear weight", compute_, out, in);
  expect(d_y, "linear d_y", compute_, tokens, out);
  if (d_x) expect(d_x, "linear d_x", compute_, tokens, in);
  const StackedA stack = stacked(linear, compute_, in, out);
  if (gradient.adapters.size() != linear.adapters.size())
    fail_internal("{} gradients for the {} adapters of a linear", gradient.adapters.size(),
                  linear.adapters.size());
  if (stack.rank > 0) expect(u, "linear u", compute_, tokens, stack.rank);
  if (stack.rank > 0 || gradient.weight) expect(x, "linear x", compute_, tokens, in);
  for (size_t i = 0; i < gradient.adapters.size(); ++i) {
    expect(gradient.adapters[i].a, "linear dA", compute_, linear.adapters[i].a.rows(), in);
    expect(gradient.adapters[i].b, "linear dB", compute_, linear.adapters[i].b.rows(),
           linear.adapters[i].a.rows());
  }
  if (gradient.weight) expect(gradient.weight, "linear dW", compute_, out, in);
  run([&]<class T>(T) {
    backward<T>(matrix<T>(d_x), gradient, matrix<T>(d_y), matrix<T>(x), matrix<T>(u), linear, stack,
                accumulate, tokens, weights_, activations_);
  });
}

}  // namespace sinklora
