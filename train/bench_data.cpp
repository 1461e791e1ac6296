#include "train/bench_data.h"

#include <algorithm>
#include <vector>

#include "base/random.h"

namespace sinklora {

constexpr int64_t kPool = 1048573;  // a prime

NormalNumbers::NormalNumbers(Ops& ops, double mean, double deviation) : ops_(ops) {
  const RandomStream random(1, "bench");
  std::vector<float> numbers(kPool);
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<float>(mean + deviation * random.normal(i));
  arena_.take(&pool_, DType::f32, {1, kPool});
  arena_.allocate(ops);
  ops.upload(pool_, numbers.data());
}

void NormalNumbers::fill(const Tensor& to) const {
  if (!to.contiguous()) fail_internal("random numbers for {}, which is not contiguous", describe(to));
  const Tensor flat(to.data, to.dtype, {1, to.size()}, to.device);
  for (int64_t begin = 0; begin < to.size(); begin += kPool) {
    const int64_t count = std::min(kPool, to.size() - begin);
    ops_.copy(flat.column_slice(begin, count), pool_.column_slice(0, count));
  }
}

}  // namespace sinklora
