#pragma once

#include <string>

namespace sinklora {

// Version, threading and chosen core of the linked OpenBLAS, as it describes itself.
std::string blas_description();

}  // namespace sinklora
