// act = silu(gate) * up, silu(g) = g s, s = 1 / (1 + exp(-g)), and its backward.
// gate_up [T, 2F], gate in the first F columns; act, d [T, F]; bf16 or f32, computed in f32.
// Moves 3 T F elements forward, 5 T F backward; about 10 and 20 FLOPs an element.
// Launch: a block per token, whole strides of at most 384 packs of 16 bytes.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int64_t kMostThreads = 384;

template <class T, int N>
__global__ void swiglu_kernel(T* out, const T* gate_up, int64_t width, int64_t out_stride,
                              int64_t in_stride) {
  let_next_begin();
  wait_for_earlier();
  const int64_t row = blockIdx.x;
  const T *const gates = gate_up + row * in_stride, *const ups = gates + width;
  T* const to = out + row * out_stride;
#pragma unroll 2
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * N; c < width;
       c += static_cast<int64_t>(blockDim.x) * N) {
    const Pack<T, N> gate = load<N>(gates + c), up = load<N>(ups + c);
    Pack<T, N> result;
    for (int i = 0; i < N; ++i) {
      const float g = to_float(gate.values[i]);
      result.values[i] = from_float<T>(g / (1.0f + expf(-g)) * to_float(up.values[i]));
    }
    store<N>(to + c, result);
  }
}

// d_up = d silu(g);  d_gate = d up silu'(g),  silu'(g) = s (1 + g (1 - s)). In place as well: a thread reads
// a pack of gate and of up before it writes these places.
template <class T, int N>
__global__ void swiglu_backward_kernel(T* d_gate_up, const T* d_out, const T* gate_up, int64_t width,
                                       int64_t to_stride, int64_t d_stride, int64_t in_stride) {
  const int64_t row = blockIdx.x;
  const T *const gates = gate_up + row * in_stride, *const ups = gates + width,
                 *const ds = d_out + row * d_stride;
  T *const d_gates = d_gate_up + row * to_stride, *const d_ups = d_gates + width;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * N; c < width;
       c += static_cast<int64_t>(blockDim.x) * N) {
    const Pack<T, N> gate = load<N>(gates + c), up = load<N>(ups + c), d = load<N>(ds + c);
    Pack<T, N> d_gate, d_up;
    for (int i = 0; i < N; ++i) {
      const float g = to_float(gate.values[i]), dy = to_float(d.values[i]);
      const float s = 1.0f / (1.0f + expf(-g));
      d_gate.values[i] = from_float<T>(dy * to_float(up.values[i]) * (s * (1.0f + g * (1.0f - s))));
      d_up.values[i] = from_float<T>(dy * (g * s));
    }
    store<N>(d_gates + c, d_gate);
    store<N>(d_ups + c, d_up);
  }
}

}  // namespace
}  // namespace cuda

void CudaOps::swiglu_forward(const Tensor& out, const Tensor& gate_up) {
  const int64_t tokens = out.rows(), width = out.row_size();
  cuda::expect(out, "swiglu out", activation_, tokens, width);
  cuda::expect(gate_up, "swiglu gate_up", activation_, tokens, 2 * width);
  if (out.size() == 0) return;
  const bool packed = cuda::packable(out) && cuda::packable(gate_up);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
      cuda::launch_beside("swiglu_kernel", cuda::swiglu_kernel<T, N>, cuda::blocks_for(tokens, "tokens"),
                          cuda::threads_for(width / N, cuda::kMostThreads), stream_, out.as<T>(),
                          gate_up.as<T>(), width, out.row_stride, gate_up.row_stride);
    });
  });
}

void CudaOps::swiglu_backward(const Tensor& d_gate_up, const Tensor& d_out, const Tensor& gate_up) {
  const int64_t tokens = d_out.rows(), width = d_out.row_size();
  cuda::expect(d_out, "swiglu d_out", activation_, tokens, width);
  cuda::expect(gate_up, "swiglu gate_up", activation_, tokens, 2 * width);
  cuda::expect(d_gate_up, "swiglu d_gate_up", activation_, tokens, 2 * width);
  if (d_out.size() == 0) return;
  const bool packed = cuda::packable(d_out) && cuda::packable(gate_up) && cuda::packable(d_gate_up);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
      cuda::swiglu_backward_kernel<T, N>
          <<<cuda::blocks_for(tokens, "tokens"), cuda::threads_for(width / N, cuda::kMostThreads), 0,
             stream_>>>(d_gate_up.as<T>(), d_out.as<T>(), gate_up.as<T>(), width, d_gate_up.row_stride,
                        d_out.row_stride, gate_up.row_stride);
    });
  });
  cuda::check_launch("swiglu_backward_kernel");
}

}  // namespace sinklora
