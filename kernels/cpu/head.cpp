// LM head and cross-entropy. Scored rows are gathered and go through in chunks; a chunk's logits are formed
// panel by panel of the weight, each panel's part of the softmax is summed while it lies in the cache. With
// gradients the chunk's logits stay (chunk x V), then each panel becomes softmax - onehot in place and goes
// through the weight back. FLOPs: 2 T V H forward, 2 T V H for d_hidden, 2 T V H for d_weight.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vector_math.h"

namespace sinklora {
namespace {

constexpr int64_t kChunk = 256;  // rows: the fastest of 128, 256 and 512 on SmolLM2-135M's 49152 x 576 head

// log sum exp, as far as the panels have come. Both are exact enough in T but for the sum over panels.
struct RowSum {
  double most = -std::numeric_limits<double>::infinity(), sum = 0, at_target = 0;
};

template <class T>
struct Head {
  Matrix<T> hidden, d_hidden, d_weight;  // the last two may be nowhere
  T* nll;
  const int32_t* targets;
  int64_t vocabulary, width;
  double loss_scale;
};

template <class T>
void add_panel(RowSum& row, const T* logits, int64_t count) {
  T most = logits[0];
#pragma omp simd reduction(max : most)
  for (int64_t c = 0; c < count; ++c) most = logits[c] > most ? logits[c] : most;
  if (static_cast<double>(most) > row.most) {
    row.sum *= std::exp(row.most - static_cast<double>(most));
    row.most = static_cast<double>(most);
  }
  const T shift = static_cast<T>(row.most);
  constexpr int64_t kBlock =
      512;  // short float sums into a double one: their error is that of 512 / 16 additions
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = begin; c < end; ++c) sum += vector_exp(logits[c] - shift);
    row.sum += static_cast<double>(sum);
  }
}

template <class T>
void chunk(const Head<T>& head, const Tensor& weight, const int64_t* rows, int64_t count, Matrix<T> x,
           Matrix<T> d_x, Matrix<T> logits, Scratch& scratch) {
  const bool gradients = head.d_hidden.data || head.d_weight.data;
  for (int64_t r = 0; r < count; ++r) std::copy_n(head.hidden.row(rows[r]), head.width, x.row(r));
  std::vector<RowSum> sums(static_cast<size_t>(count));
  WeightPanels<T> panels(weight, scratch);
  for (int64_t p = 0; p < panels.count(); ++p) {
    const int64_t begin = panels.begin(p), number = panels.rows(p);
    const Matrix<T> part = logits.at(0, gradients ? begin : 0);
    gemm<T>(Layout::plain, Layout::transposed, count, number, head.width, 1, x, panels[p], 0, part);
#pragma omp parallel for if (count * number >= kParallelElements)
    for (int64_t r = 0; r < count; ++r) {
      RowSum& row = sums[static_cast<size_t>(r)];
      add_panel(row, part.row(r), number);
      const int64_t target = head.targets[rows[r]] - begin;
      if (target >= 0 && target < number) row.at_target = static_cast<double>(part.row(r)[target]);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const RowSum& row = sums[static_cast<size_t>(r)];
    head.nll[rows[r]] = static_cast<T>((row.most - row.at_target) + std::log(row.sum));
  }
  if (!gradients) return;
  for (int64_t p = 0; p < panels.count(); ++p) {
    const int64_t begin = panels.begin(p), number = panels.rows(p);
    const Matrix<T> part = logits.at(0, begin);
#pragma omp parallel for if (count * number >= kParallelElements)
    for (int64_t r = 0; r < count; ++r) {
      const RowSum& row = sums[static_cast<size_t>(r)];
      const T shift = static_cast<T>(row.most), scale = static_cast<T>(head.loss_scale / row.sum);
      T* const values = part.row(r);
#pragma omp simd
      for (int64_t c = 0; c < number; ++c) values[c] = vector_exp(values[c] - shift) * scale;
      const int64_t target = head.targets[rows[r]] - begin;
      if (target >= 0 && target < number) values[target] -= static_cast<T>(head.loss_scale);
    }
    if (head.d_hidden.data)
      gemm<T>(Layout::plain, Layout::plain, count, head.width, number, 1, part, panels[p], p > 0 ? 1 : 0,
              d_x);
    if (head.d_weight.data)
      gemm<T>(Layout::transposed, Layout::plain, number, head.width, count, 1, part, x, 1,
              head.d_weight.at(begin, 0));
  }
  if (!head.d_hidden.data) return;
  for (int64_t r = 0; r < count; ++r) std::copy_n(d_x.row(r), head.width, head.d_hidden.row(rows[r]));
}

}  // namespace

int64_t CpuOps::head_scratch_bytes(int64_t tokens, int64_t vocabulary, int64_t width, bool gradients) const {
  const int64_t rows = std::min(kChunk, tokens), panel = WeightPanels<float>::kPanelElements;
  return (rows * (gradients ? vocabulary : panel / width) + 2 * rows * width + panel) * size_of(compute_);
}

void CpuOps::head_cross_entropy(const Tensor& nll, const Tensor& d_hidden, const Tensor& d_weight,
                                const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                                double loss_scale) {
  const int64_t tokens = hidden.rows(), width = hidden.row_size(), vocabulary = weight.rows();
  expect(hidden, "head hidden", compute_, tokens, width);
  expect_weight(weight, "head weight", compute_, vocabulary, width);
  expect(nll, "head nll", compute_, tokens, 1);
  expect(targets, "head targets", DType::i32, tokens, 1);
  if (d_hidden) expect(d_hidden, "head d_hidden", compute_, tokens, width);
  if (d_weight) expect(d_weight, "head d_weight", compute_, vocabulary, width);
  const auto* const target = targets.as<int32_t>();
  std::vector<int64_t> scored;
  for (int64_t t = 0; t < tokens; ++t) {
    if (target[t] >= vocabulary)
      fail_input(
          "token {} has target {}, the model's vocabulary has {}: data and model do not belong together", t,
          target[t], vocabulary);
    if (target[t] >= 0) scored.push_back(t);
  }
  zero(nll);
  if (d_hidden) zero(d_hidden);
  const auto rows = static_cast<int64_t>(scored.size());
  run([&]<class T>(T) {
    const Head<T> head{
        matrix<T>(hidden), matrix<T>(d_hidden), matrix<T>(d_weight), nll.as<T>(), target, vocabulary, width,
        loss_scale};
    const int64_t most = std::min(kChunk, rows), panel = WeightPanels<T>(weight, weights_).most_rows();
    const Matrix<T> logits{sums_.take<T>(most * (d_hidden || d_weight ? vocabulary : panel)),
                           d_hidden || d_weight ? vocabulary : panel};
    const Matrix<T> x{activations_.take<T>(2 * most * width), width};
    for (int64_t begin = 0; begin < rows; begin += kChunk)
      chunk<T>(head, weight, scored.data() + begin, std::min(kChunk, rows - begin), x, x.at(most, 0), logits,
               weights_);
  });
}

}  // namespace sinklora
