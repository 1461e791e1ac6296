// Choosing a backend at run time.
#pragma once

#include <memory>
#include <string>

#include "kernels/ops.h"

namespace sinklora {

// `device`: "cpu" or "cuda". `precision`: "fp32" or "bf16"; on the CPU bf16 means that frozen matrices are
// kept in bfloat16 (half the memory) and everything is computed in f32. `index`: which GPU.
std::unique_ptr<Ops> make_ops(const std::string& device, const std::string& precision, int index = 0);

// What `precision` "auto" stands for on this device: bf16 on a GPU, whose tensor cores want it, fp32 on the CPU.
std::string precision_on(const std::string& device, const std::string& precision);

// How many of them there are: GPUs that this process sees; the CPU is one.
int device_count(const std::string& device);

// Throws Error(does_not_fit) when `what` takes more than a run may take: the system would rather kill a
// process than refuse it memory.
void expect_room(const std::string& device, int64_t bytes, const std::string& what);

// The type in which frozen matrices are kept.
DType frozen_dtype(const std::string& precision);

// Free bytes of GPU `index`, which becomes the current one of this thread (negative: of the current one); on
// the CPU, of the machine or container.
int64_t available_memory(const std::string& device, int index = -1);

}  // namespace sinklora
