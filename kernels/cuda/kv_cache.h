// What the two ops of a KV cache share.
#pragma once

#include "kernels/ops.h"

namespace sinklora::cuda {

void expect_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v, const Tensor& new_mass,
                  DType activation, int64_t kv_heads);

}  // namespace sinklora::cuda
