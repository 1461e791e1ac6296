#include "kernels/backend.h"

#include <fstream>

#include "base/error.h"
#include "kernels/cuda_backend.h"

namespace sinklora {

std::unique_ptr<Ops> make_ops(const std::string& device, const std::string& precision) {
  if (precision != "fp32" && precision != "bf16")
    fail_usage("--precision {}: choose bf16 or fp32", precision);
  if (device == "cpu") return make_cpu_ops(DType::f32);
  if (device == "cuda") return make_cuda_ops(frozen_dtype(precision));
  fail_usage("--device {}: choose cpu or cuda", device);
}

DType frozen_dtype(const std::string& precision) { return precision == "bf16" ? DType::bf16 : DType::f32; }

int64_t available_memory(const std::string& device) {
  if (device == "cuda") return cuda_available_memory();
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  for (int64_t kib = 0; file >> key >> kib; std::getline(file, unit))
    if (key == "MemAvailable:") return kib * 1024;
  fail_internal("/proc/meminfo has no MemAvailable");
}

}  // namespace sinklora
