#include "train/utilization.h"

#include <sys/resource.h>

#include "base/format.h"
#include "kernels/backend.h"
#include "kernels/cuda_backend.h"
#include "kernels/operation_counts.h"

namespace sinklora {
namespace {

struct Peak {
  const char* name;  // is found in the GPU's
  double operations;
};
constexpr Peak kPeaks[] = {{"H200 NVL", 835e12}, {"H100 NVL", 835e12}, {"H100 PCIe", 756e12},
                           {"H100", 989.4e12},   {"H200", 989.4e12},   {"A100", 312e12}};

}  // namespace

std::optional<double> dense_bf16_peak(std::string_view gpu) {
  for (const Peak& peak : kPeaks)
    if (gpu.find(peak.name) != std::string_view::npos) return peak.operations;
  return std::nullopt;
}

std::optional<double> peak_operations(const std::string& device, const std::string& precision, int index) {
  if (device != "cuda" || precision != "bf16") return std::nullopt;
  const CudaDescription found = describe_cuda();
  const auto number = static_cast<size_t>(index);
  return number < found.devices.size() ? dense_bf16_peak(found.devices[number]) : std::nullopt;
}

int64_t linear_weights(const LlamaConfig& c) {
  const int64_t block =
      c.hidden_size * (c.qkv_width() + c.query_width()) + 3 * c.hidden_size * c.intermediate_size;
  return c.num_layers * block + c.vocab_size * c.hidden_size;
}

double model_operations(const LlamaConfig& c, const AttentionPattern& pattern,
                        std::span<const int64_t> offsets, bool trains_all) {
  const auto weights = static_cast<double>(linear_weights(c));
  double pairs = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    pairs += static_cast<double>(visible_pairs(pattern, c.num_heads, offsets[s + 1] - offsets[s]));
  const auto tokens = static_cast<double>(offsets.back() - offsets.front());
  return (trains_all ? 6.0 : 4.0) * weights * tokens +
         14.0 * static_cast<double>(c.head_dim * c.num_layers) * pairs;
}

double memory_gib(const std::string& device, int device_index, int64_t free_before) {
  if (device == "cuda")
    return static_cast<double>(free_before - available_memory(device, device_index)) / kGiB;
  struct rusage usage {};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<double>(usage.ru_maxrss) / (1024.0 * 1024.0);
}

}  // namespace sinklora
