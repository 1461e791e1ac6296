// Stands in for the CUDA backend in builds without it.
#include "kernels/cuda_backend.h"

namespace sinklora {

std::unique_ptr<Ops> make_cuda_ops(DType, int) {
  fail_usage(
      "--device cuda: this build has no CUDA backend; build with nvcc 12 or later, or use --device cpu");
}

int64_t cuda_available_memory(int) {
  fail_usage(
      "--device cuda: this build has no CUDA backend; build with nvcc 12 or later, or use --device cpu");
}

}  // namespace sinklora
