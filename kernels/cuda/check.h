// Return codes of CUDA become exceptions that carry the statement.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include "base/error.h"

namespace sinklora::cuda {

inline void check(cudaError_t code, const char* statement) {
  if (code != cudaSuccess)
    fail(ExitCode::internal, "CUDA: {} failed: {} ({})", statement, cudaGetErrorString(code),
         cudaGetErrorName(code));
}
inline void check(cublasStatus_t code, const char* statement) {
  if (code != CUBLAS_STATUS_SUCCESS)
    fail(ExitCode::internal, "cuBLASLt: {} failed: {}", statement, cublasLtGetStatusName(code));
}
// After every launch: a wrong launch shape shows here, a fault inside the kernel at the next call that waits.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace sinklora::cuda

#define SINKLORA_CUDA(statement) ::sinklora::cuda::check((statement), #statement)
