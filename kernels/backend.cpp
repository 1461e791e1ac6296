#include "kernels/backend.h"

#include "base/error.h"
#include "base/format.h"
#include "base/machine.h"
#include "kernels/cuda_backend.h"

namespace sinklora {

std::unique_ptr<Ops> make_ops(const std::string& device, const std::string& precision, int index) {
  if (precision != "fp32" && precision != "bf16")
    fail_usage("--precision {}: choose bf16 or fp32", precision);
  if (device == "cpu") return make_cpu_ops(DType::f32);
  if (device == "cuda") return make_cuda_ops(frozen_dtype(precision), index);
  fail_usage("--device {}: choose cpu or cuda", device);
}

std::string precision_on(const std::string& device, const std::string& precision) {
  if (precision != "auto") return precision;
  return device == "cuda" ? "bf16" : "fp32";
}

int device_count(const std::string& device) { return device == "cuda" ? cuda_device_count() : 1; }

DType frozen_dtype(const std::string& precision) { return precision == "bf16" ? DType::bf16 : DType::f32; }

int64_t available_memory(const std::string& device, int index) {
  if (device == "cuda") return cuda_available_memory(index);
  return look_at_machine().available_memory;
}

void expect_room(const std::string& device, int64_t bytes, const std::string& what) {
  if (const int64_t available = available_memory(device); bytes > available)
    fail(ExitCode::does_not_fit,
         "{} takes {} of memory, {} are available; give a shorter --context, a smaller --cache-budget, or "
         "--precision bf16",
         what, format_bytes(static_cast<double>(bytes)), format_bytes(static_cast<double>(available)));
}

}  // namespace sinklora
