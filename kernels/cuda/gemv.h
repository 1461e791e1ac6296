// y = x W^T for a few rows of x: decoding, where reading W is all the time there is.
#pragma once

#include <cuda_runtime.h>

#include "kernels/tensor.h"

namespace sinklora::cuda {

constexpr int64_t kGemvRows = 8;

// Whether launch_gemv takes these: up to kGemvRows rows, one type, whole packs of 16 bytes.
bool gemv_takes(const Tensor& y, const Tensor& x, const Tensor& weight);
// y [S, out], added into when `accumulate`; x [S, in]; weight [out, in]; all bf16 or all f32. A row's bits do
// not depend on the others. `settled`: none of the last few ops wrote the weight, so that reading it may
// begin before they have ended.
void launch_gemv(const Tensor& y, const Tensor& x, const Tensor& weight, bool accumulate, bool settled,
                 cudaStream_t stream);

}  // namespace sinklora::cuda
