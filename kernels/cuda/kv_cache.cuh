// Which token a KV head gives up: the one of least mass, the last of equals.
#pragma once

#include "kernels/cuda/device.cuh"

namespace sinklora::cuda {

inline constexpr int kChoosers = 1024;  // threads of a block that chooses

struct Victim {
  float mass;
  int32_t position, key;  // key -1: none yet
};
__device__ __forceinline__ Victim worse(const Victim& a, const Victim& b) {
  if (b.key < 0) return a;
  if (a.key < 0) return b;
  return a.mass < b.mass || (a.mass == b.mass && a.position > b.position) ? a : b;
}

__device__ __forceinline__ Victim worst_of_warp(Victim own) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    own = worse(own, {__shfl_xor_sync(0xffffffffu, own.mass, distance),
                      __shfl_xor_sync(0xffffffffu, own.position, distance),
                      __shfl_xor_sync(0xffffffffu, own.key, distance)});
  return own;
}
__device__ inline Victim worst_of_block(Victim own) {
  __shared__ Victim warps[kChoosers / kWarp];
  static_assert(kChoosers / kWarp == kWarp);
  own = worst_of_warp(own);
  __syncthreads();  // the previous answer has been read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = own;
  __syncthreads();
  return worst_of_warp(warps[threadIdx.x % kWarp]);
}

}  // namespace sinklora::cuda
