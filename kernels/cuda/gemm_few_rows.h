// y = x W^T for a few rows of x: decoding, where reading W is all the time there is.
#pragma once

#include <cuda_runtime.h>

#include "kernels/tensor.h"

namespace sinklora::cuda {

constexpr int64_t kFewRows = 32;

// Whether multiply_few_rows takes these: up to kFewRows rows of bf16, whole packs of 16 bytes.
bool few_rows(const Tensor& y, const Tensor& x, const Tensor& weight);
// y [S, out], added into when `accumulate`; x [S, in]; weight [out, in]. A row's bits do not depend on the
// others. `settled`: none of the last few ops wrote the weight, so that reading it may begin before they have
// ended.
void multiply_few_rows(const Tensor& y, const Tensor& x, const Tensor& weight, bool accumulate, bool settled,
                       cudaStream_t stream);

}  // namespace sinklora::cuda
