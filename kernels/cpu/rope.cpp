// Rotates the halves of every head against one another, in place. Reads and writes T heads D elements.
#include "kernels/cpu/cpu_ops.h"

namespace sinklora {

void CpuOps::rope(const Tensor& x, const Tensor& positions, const Tensor& cosines, const Tensor& sines,
                  int64_t head_dim, bool inverse) {
  const int64_t tokens = x.rows(), width = x.row_size(), half = head_dim / 2, angles = cosines.rows();
  if (head_dim <= 0 || head_dim % 2 != 0 || width % head_dim != 0)
    fail_internal("rope: rows of {} elements do not hold heads of {}", width, head_dim);
  expect(x, "rope x", compute_, tokens, width);
  expect(positions, "rope positions", DType::i32, tokens, 1);
  expect(cosines, "rope cosines", compute_, angles, half);
  expect(sines, "rope sines", compute_, angles, half);
  const auto* const position = positions.as<int32_t>();
  for (int64_t t = 0; t < tokens; ++t)
    if (position[t] < 0 || position[t] >= angles)
      fail_internal("rope: token {} has position {}, the table has {}", t, position[t], angles);
  run([&]<class T>(T) {
#pragma omp parallel for if (tokens * width >= kParallelElements)
    for (int64_t t = 0; t < tokens; ++t) {
      const T* const cosine = matrix<T>(cosines).row(position[t]);
      const T* const sine = matrix<T>(sines).row(position[t]);
      const T sign = inverse ? T{-1} : T{1};
      for (T* head = matrix<T>(x).row(t); head < matrix<T>(x).row(t) + width; head += head_dim) {
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const T a = head[i], b = head[half + i], s = sign * sine[i];
          head[i] = a * cosine[i] - b * s;
          head[half + i] = b * cosine[i] + a * s;
        }
      }
    }
  });
}

}  // namespace sinklora
