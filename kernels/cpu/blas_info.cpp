#include "kernels/cpu/blas_info.h"

#include <cblas.h>

#include <algorithm>
#include <cstdlib>

#include "base/machine.h"

namespace sinklora {

std::string blas_description() { return openblas_get_config(); }

std::string better_blas_core(const std::string& chosen, const std::vector<std::string>& features) {
  constexpr const char* kBeforeAvx[] = {"Prescott", "Core2",  "Katmai", "Coppermine", "Northwood",
                                        "Banias",   "Penryn", "Athlon", "Opteron",    "Unknown"};
  const auto has = [&](const char* feature) {
    return std::find(features.begin(), features.end(), feature) != features.end();
  };
  if (std::find(std::begin(kBeforeAvx), std::end(kBeforeAvx), chosen) == std::end(kBeforeAvx)) return {};
  if (has("avx512f") && has("avx512bw")) return "SkylakeX";
  return has("avx2") && has("fma") ? "Haswell" : "";
}

std::string better_blas_core() {
  if (std::getenv("OPENBLAS_CORETYPE")) return {};
  return better_blas_core(openblas_get_corename(), look_at_machine().features);
}

}  // namespace sinklora
