#include "kernels/cpu/blas_info.h"

#include <cblas.h>

namespace sinklora {

std::string blas_description() { return openblas_get_config(); }

}  // namespace sinklora
