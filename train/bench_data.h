// Random normal numbers for benches, in memory of a backend: products of zeros draw less power and run
// faster than real ones do.
#pragma once

#include "kernels/arena.h"

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

}  // namespace sinklora
