// A CUDA graph of the ops that a caller repeats (Ops::repeat): hundreds of small kernels are given to the GPU
// as one.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>

namespace sinklora::cuda {

class Recording {
 public:
  Recording() = default;
  ~Recording() { forget(); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // Under a new key, runs the ops: they take scratch memory and choose algorithms, which no recording may.
  // The next time it records them, from then on it launches what was recorded. `memory` tells states of the
  // scratch memory apart: what was recorded holds in one of them alone.
  void run(uint64_t key, const std::function<int64_t()>& memory, const std::function<void()>& ops,
           cudaStream_t stream);

 private:
  void record(const std::function<void()>& ops, cudaStream_t stream);
  void forget();

  cudaGraphExec_t graph_ = nullptr;
  uint64_t key_ = 0;
  int64_t memory_ = -1;
};

}  // namespace sinklora::cuda
