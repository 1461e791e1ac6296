// What the kernels share: packs of 16 bytes, conversions, sums over a warp and a block in a fixed order, and
// the launchers' choice between packed and element-wise instances.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/rows.h"

namespace sinklora::cuda {

using bf16 = __nv_bfloat16;
constexpr int kWarp = 32;
constexpr int kPackBytes = 16;

template <class T>
Rows<T> rows_of(const Tensor& t) {
  return {t.as<T>(), t.row_stride};
}

// N neighbours in memory, moved by one instruction when they are 16 or 8 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
  Pack<T, N> pack;
  if constexpr (sizeof(pack) == kPackBytes) {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    memcpy(&pack, &words, sizeof words);
  } else if constexpr (sizeof(pack) == kPackBytes / 2) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    memcpy(&pack, &words, sizeof words);
  } else {
    for (int i = 0; i < N; ++i) pack.values[i] = from[i];
  }
  return pack;
}
template <int N, class T>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& pack) {
  if constexpr (sizeof(pack) == kPackBytes) {
    uint4 words;
    memcpy(&words, &pack, sizeof words);
    *reinterpret_cast<uint4*>(to) = words;
  } else if constexpr (sizeof(pack) == kPackBytes / 2) {
    uint2 words;
    memcpy(&words, &pack, sizeof words);
    *reinterpret_cast<uint2*>(to) = words;
  } else {
    for (int i = 0; i < N; ++i) to[i] = pack.values[i];
  }
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

// N floats from a vector of f32 or bf16, whose type is known at run time only (gains, tables of angles).
template <int N>
__device__ __forceinline__ void load_floats(float (&to)[N], const void* from, bool is_bf16, int64_t offset) {
  if (is_bf16) {
    const Pack<bf16, N> pack = load<N>(static_cast<const bf16*>(from) + offset);
    for (int i = 0; i < N; ++i) to[i] = to_float(pack.values[i]);
  } else {
    constexpr int kStep = N < 4 ? N : 4;
    for (int i = 0; i < N; i += kStep) {
      const Pack<float, kStep> pack = load<kStep>(static_cast<const float*>(from) + offset + i);
      for (int j = 0; j < kStep; ++j) to[i + j] = pack.values[j];
    }
  }
}

// Sums in the order of a butterfly: every lane gets the same bits.
__device__ __forceinline__ float warp_sum(float x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}
// Sum over a block whose size is a multiple of a warp; `partial` holds a float for each warp. Every thread
// gets it.
__device__ __forceinline__ float block_sum(float x, float* partial) {
  x = warp_sum(x);
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return x;
  __syncthreads();  // the previous sum has been read
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

// Kernels of a few microseconds, one after the other (launch_beside): each may begin before the one in front
// of it has ended, and waits for that one, and so for all before it, when it needs what they wrote or writes
// what they read. Before sm_90, and for kernels launched otherwise, both do nothing.
__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The first fault stays.
__device__ inline void report(Fault* fault, Fault::Kind kind, int64_t token, int32_t value, int64_t limit) {
  if (atomicCAS(&fault->kind, static_cast<int32_t>(Fault::none), static_cast<int32_t>(kind)) != Fault::none)
    return;
  fault->token = static_cast<int32_t>(token);
  fault->value = value;
  fault->limit = static_cast<int32_t>(limit);
}

// ---- for launchers ----

// Calls work(T{}) with the device type of a float dtype.
template <class Work>
void with_type(DType type, Work&& work) {
  if (type == DType::bf16)
    work(bf16{});
  else if (type == DType::f32)
    work(float{});
  else
    fail_internal("the CUDA backend computes in f32 and bf16, not in {}", name_of(type));
}

// Every row of the matrix begins at a multiple of 16 bytes and consists of whole packs. An empty one does not
// object.
inline bool packable(const Tensor& t) {
  const int64_t size = size_of(t.dtype);
  return !t.data ||
         (reinterpret_cast<uintptr_t>(t.data) % kPackBytes == 0 && t.row_size() * size % kPackBytes == 0 &&
          (t.rows() <= 1 || t.row_stride * size % kPackBytes == 0));
}
inline bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) % kPackBytes == 0; }

// Calls work(std::integral_constant<int, N>) with N elements a pack: 16 bytes of them, or one.
template <class T, class Work>
void with_pack(bool packed, Work&& work) {
  if (packed)
    work(std::integral_constant<int, kPackBytes / static_cast<int>(sizeof(T))>{});
  else
    work(std::integral_constant<int, 1>{});
}

inline unsigned blocks_for(int64_t count, const char* what) {
  return static_cast<unsigned>(narrow<int32_t>(count, what));
}

// Launches a kernel that calls wait_for_earlier(): it may begin while the one before it ends.
template <class... Parameters, class... Arguments>
void launch_beside(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                   cudaStream_t stream, Arguments&&... arguments) {
  static const bool possible = [] {
    int device = 0, major = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    return major >= 9;
  }();
  cudaLaunchAttribute beside{};
  beside.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  beside.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.stream = stream;
  config.attrs = &beside, config.numAttrs = possible ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

// Threads of a block that walks over `packs` in whole strides, as even as possible, at most `most` at once.
inline unsigned threads_for(int64_t packs, int64_t most) {
  const int64_t strides = (packs + most - 1) / most;
  const int64_t each = strides == 0 ? 1 : (packs + strides - 1) / strides;
  return static_cast<unsigned>((each + kWarp - 1) / kWarp * kWarp);
}

}  // namespace sinklora::cuda
