#include "bench/common.h"

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

void randomize(Ops& ops, Weights& weights) {
  const NormalNumbers matrices(ops, 0, 0.02), gains(ops, 1, 0);
  weights.fill(ops, [&](const Parameter& parameter) {
    const bool norm = parameter.name.find("norm.weight") != std::string::npos;
    const Tensor &value = parameter.weight.value, &master = parameter.weight.master;
    (norm ? gains : matrices).fill(value);
    if (master && master.data != value.data) (norm ? gains : matrices).fill(master);
  });
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Json profile_json(const std::vector<OpTime>& rows, double step_ms) {
  double sum = 0;
  for (const OpTime& row : rows) sum += row.milliseconds;
  Json list = Json::array();
  for (const OpTime& row : rows) {
    const double seconds = row.milliseconds * 1e-3;
    list.push_back({{"op", row.name},
                    {"calls", row.calls},
                    {"ms", row.milliseconds},
                    {"share", row.milliseconds / sum},
                    {"tflops", row.operations > 0 ? Json(row.operations / seconds * 1e-12) : Json(nullptr)},
                    {"gb_per_s", row.bytes > 0 ? Json(row.bytes / seconds * 1e-9) : Json(nullptr)}});
  }
  return {{"step_ms", step_ms}, {"sum_ms", sum}, {"ops", list}};
}

}  // namespace sinklora
