// The door to kernels/cuda, without any header of the vendor. A build without CUDA has a stub behind it that
// says so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace sinklora {

// The CUDA backend on GPU `index`; `activation` is f32 (true fp32, no TF32) or bf16. An instance belongs to
// the thread that made it.
std::unique_ptr<Ops> make_cuda_ops(DType activation, int index = 0);

// GPUs that this process sees, at least one.
int cuda_device_count();

// For reports; never throws. version: "runtime 13.0, driver 13.0", or what is missing. devices: for each GPU
// "NVIDIA H100 80GB HBM3, 79.2 GiB, compute capability 9.0".
struct CudaDescription {
  std::string version;
  std::vector<std::string> devices;
};
CudaDescription describe_cuda();

// Free bytes of GPU `index`, which becomes the current one of this thread (negative: of the current one).
int64_t cuda_available_memory(int index = -1);

}  // namespace sinklora
