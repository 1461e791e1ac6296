// Memory of the GPU and pinned memory of the host, freed by their owners.
#pragma once

#include <memory>

#include "kernels/cuda/check.h"
#include "kernels/tensor.h"

namespace sinklora::cuda {

// A failing cudaFree means that the context is lost; whoever waits next is told so.
struct FreeDevice {
  void operator()(void* memory) const { static_cast<void>(cudaFree(memory)); }
};
struct FreePinned {
  void operator()(void* memory) const { static_cast<void>(cudaFreeHost(memory)); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;
using PinnedMemory = std::unique_ptr<void, FreePinned>;

void* allocate_device(int64_t bytes);  // not zeroed; throws Error(does_not_fit)
PinnedMemory allocate_pinned(int64_t bytes);

// Device memory that grows to the most that was asked for and is used again by every later op: ops run one
// after the other in one stream. take() carves one op's pieces after reserve() said how much they are
// together.
class Workspace {
 public:
  static constexpr int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
  void reserve(int64_t bytes);
  void* take(int64_t bytes);
  Tensor take(DType dtype, int64_t rows, int64_t columns);
  int64_t growths() const { return growths_; }  // addresses are good for one of them

 private:
  DeviceMemory memory_;
  int64_t capacity_ = 0, used_ = 0, growths_ = 0;
};

// What a kernel found wrong with its input. Kernels cannot throw: they leave this note, and the next op that
// waits throws for them.
struct Fault {
  enum Kind : int32_t { none = 0, token_id, position, target };
  int32_t kind, token, value, limit;
};

}  // namespace sinklora::cuda
