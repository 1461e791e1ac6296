// What benches share: random normal numbers, since products of zeros draw less power and run faster than real
// ones do; the median; and the record of a profile.
#pragma once

#include <vector>

#include "base/json.h"
#include "kernels/arena.h"
#include "kernels/timed_ops.h"
#include "model/weights.h"

namespace sinklora {

class NormalNumbers {
 public:
  NormalNumbers(Ops& ops, double mean, double deviation);
  // `to`: contiguous, of a float type. The numbers repeat after a prime, so that no two rows are alike.
  void fill(const Tensor& to) const;

 private:
  Ops& ops_;
  Arena arena_{"random numbers"};
  Tensor pool_;
};

// Gains of 1, and normal numbers as a fresh model has them for the rest.
void randomize(Ops& ops, Weights& weights);

// Of an even number the greater of the two in the middle.
double median(std::vector<double> values);

// {"step_ms","sum_ms","ops":[{"op","calls","ms","share","tflops","gb_per_s"}]}
Json profile_json(const std::vector<OpTime>& rows, double step_ms);

}  // namespace sinklora
