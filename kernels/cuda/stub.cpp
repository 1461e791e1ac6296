// Stands in for the CUDA backend in builds without it.
#include "kernels/cuda_backend.h"

namespace sinklora {
namespace {

[[noreturn]] void refuse() {
  fail_usage(
      "--device cuda: this build has no CUDA backend; build with nvcc 12 or later, or use --device cpu");
}

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(DType, int) { refuse(); }
int cuda_device_count() { refuse(); }
CudaDescription describe_cuda() { return {"not built", {}}; }
int64_t cuda_available_memory(int) { refuse(); }

}  // namespace sinklora
