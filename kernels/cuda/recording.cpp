#include "kernels/cuda/recording.h"

#include "kernels/cuda/check.h"

namespace sinklora::cuda {

void Recording::forget() {
  if (graph_) static_cast<void>(cudaGraphExecDestroy(graph_));  // called by the destructor
  graph_ = nullptr;
}

void Recording::run(uint64_t key, const std::function<int64_t()>& memory, const std::function<void()>& ops,
                    cudaStream_t stream) {
  if (key != key_ || memory() != memory_) {
    forget();
    ops();
    key_ = key, memory_ = memory();
    return;
  }
  if (!graph_) record(ops, stream);
  SINKLORA_CUDA(cudaGraphLaunch(graph_, stream));
}

void Recording::record(const std::function<void()>& ops, cudaStream_t stream) {
  SINKLORA_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t recorded = nullptr;
  try {
    ops();
  } catch (...) {
    static_cast<void>(cudaStreamEndCapture(stream, &recorded));  // what was thrown says more
    if (recorded) static_cast<void>(cudaGraphDestroy(recorded));
    throw;
  }
  SINKLORA_CUDA(cudaStreamEndCapture(stream, &recorded));
  const cudaError_t made = cudaGraphInstantiate(&graph_, recorded, 0);
  static_cast<void>(cudaGraphDestroy(recorded));
  check(made, "cudaGraphInstantiate");
}

}  // namespace sinklora::cuda
