#pragma once

#include <string>
#include <vector>

namespace sinklora {

// Version, threading and chosen core of the linked OpenBLAS, as it describes itself.
std::string blas_description();

// OpenBLAS knows processors by their model numbers. On one newer than itself it takes kernels of 2004 (SSE3),
// ten times slower than what the machine can do. What OPENBLAS_CORETYPE should be then, by the processor's
// `features` (base/machine.h); empty where the choice is good, and where the user has made one.
std::string better_blas_core(const std::string& chosen, const std::vector<std::string>& features);
std::string better_blas_core();

}  // namespace sinklora
