// Choosing a backend at run time.
#pragma once

#include <memory>
#include <string>

#include "kernels/ops.h"

namespace sinklora {

// `device`: "cpu" or "cuda". `precision`: "fp32" or "bf16"; on the CPU bf16 means that frozen matrices are
// kept in bfloat16 (half the memory) and everything is computed in f32.
std::unique_ptr<Ops> make_ops(const std::string& device, const std::string& precision);

// The type in which frozen matrices are kept.
DType frozen_dtype(const std::string& precision);

// Bytes a run on this device may take at most: free device memory, or what the machine or container has left.
int64_t available_memory(const std::string& device);

}  // namespace sinklora
