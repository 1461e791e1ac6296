// A matrix as kernels take it.
#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace sinklora::cuda {

// A [T, columns] matrix whose rows lie `stride` elements apart.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  SINKLORA_HOST_DEVICE T* operator[](int64_t row) const { return data + row * stride; }
};

}  // namespace sinklora::cuda
