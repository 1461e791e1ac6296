// AdamW and the sum of squares for the gradient's norm. Both run at the speed of memory.
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_ops.h"

namespace sinklora {
namespace {

constexpr int64_t kBlock = 4096;  // elements of one thread at a time; also fixes the order of sum_of_squares

template <class T>
void update(T* master, const T* gradient, T* m, T* v, int64_t count, const AdamWStep& step) {
  const T beta1 = static_cast<T>(step.beta1), beta2 = static_cast<T>(step.beta2);
  const T other1 = static_cast<T>(1 - step.beta1), other2 = static_cast<T>(1 - step.beta2);
  const auto updates = static_cast<double>(step.step);
  const T rate = static_cast<T>(step.learning_rate / (1 - std::pow(step.beta1, updates)));
  const T root = static_cast<T>(1 / std::sqrt(1 - std::pow(step.beta2, updates)));
  const T decay = static_cast<T>(step.learning_rate * step.weight_decay);
  const T epsilon = static_cast<T>(step.epsilon), scale = static_cast<T>(step.gradient_scale);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T g = scale * gradient[i];
    m[i] = beta1 * m[i] + other1 * g;
    v[i] = beta2 * v[i] + other2 * g * g;
    master[i] = master[i] - decay * master[i] - rate * m[i] / (std::sqrt(v[i]) * root + epsilon);
  }
}

}  // namespace

void CpuOps::adamw(const Tensor& working, const Tensor& master, const Tensor& gradient, const Tensor& m,
                   const Tensor& v, const AdamWStep& step) {
  const int64_t rows = master.rows(), columns = master.row_size(), count = master.size();
  for (const auto& [tensor, name] :
       {std::pair{&master, "adamw master"}, std::pair{&gradient, "adamw gradient"}, std::pair{&m, "adamw m"},
        std::pair{&v, "adamw v"}}) {
    expect(*tensor, name, compute_, rows, columns);
    expect_contiguous(*tensor, name);
  }
  run([&]<class T>(T) {
#pragma omp parallel for if (count >= kParallelElements)
    for (int64_t i = 0; i < count; i += kBlock)
      update<T>(master.as<T>() + i, gradient.as<T>() + i, m.as<T>() + i, v.as<T>() + i,
                std::min(kBlock, count - i), step);
  });
  if (working.data != master.data) copy(working, master);
}

double CpuOps::sum_of_squares(const Tensor& x) {
  expect_contiguous(x, "sum_of_squares");
  const int64_t count = x.size(), blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> sums(static_cast<size_t>(blocks));
#pragma omp parallel for if (count >= kParallelElements)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * kBlock, length = std::min(kBlock, count - begin);
    double values[kBlock], sum = 0;
    convert(values, static_cast<const char*>(x.data) + begin * size_of(x.dtype), x.dtype, length);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; ++i) sum += values[i] * values[i];
    sums[static_cast<size_t>(b)] = sum;
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace sinklora
