// Rows of a table by token id: out[t] = table[ids[t]], and d_table[ids[t]] += d_out[t] in the order of t.
// out, d_out [T, H] in bf16 or f32; table [V, H] in bf16 or f32; d_table [V, H] in f32; ids [T] in i32.
// Forward moves 2 T H elements: a block per token. Backward: the tokens are sorted by id with a stable radix
// sort (CUB), so that equal ids become neighbours in the order of t; then every block that stands at the
// first token of an id adds that id's rows one after the other. Moves T H elements of d_out and each touched
// row of d_table twice. Launch of the backward: a block per token and 512 columns; all but those at the first
// token of an id leave at once.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int64_t kMostThreads = 512;
constexpr int kColumnThreads = 64;  // of a block of the backward
constexpr int kThreads = 256;

template <class Out, class In, int N>
__global__ void embedding_kernel(Out* out, const In* table, const int32_t* ids, int64_t hidden,
                                 int64_t out_stride, int64_t table_stride, int64_t vocabulary, Fault* fault) {
  const int64_t token = blockIdx.x;
  const int32_t id = ids[token];
  if (id < 0 || id >= vocabulary) {
    if (threadIdx.x == 0) report(fault, Fault::token_id, token, id, vocabulary);
    return;
  }
  const In* const from = table + id * table_stride;
  Out* const to = out + token * out_stride;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * N; c < hidden;
       c += static_cast<int64_t>(blockDim.x) * N) {
    const Pack<In, N> pack = load<N>(from + c);
    if constexpr (std::is_same_v<Out, In>) {
      store<N>(to + c, pack);
    } else {
      Pack<Out, N> result;
      for (int i = 0; i < N; ++i) result.values[i] = from_float<Out>(to_float(pack.values[i]));
      store<N>(to + c, result);
    }
  }
}

__global__ void number_tokens_kernel(int32_t* numbers, const int32_t* ids, int64_t tokens, int64_t vocabulary,
                                     Fault* fault) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  numbers[token] = static_cast<int32_t>(token);
  if (ids[token] < 0 || ids[token] >= vocabulary)
    report(fault, Fault::token_id, token, ids[token], vocabulary);
}

template <class T, int N>
__global__ void embedding_backward_kernel(float* d_table, const T* d_out, const int32_t* ids,
                                          const int32_t* order, int64_t tokens, int64_t hidden,
                                          int64_t table_stride, int64_t out_stride, int64_t vocabulary,
                                          int64_t blocks_per_row) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) / blocks_per_row;
  const int32_t id = ids[first];
  if ((first > 0 && ids[first - 1] == id) || id < 0 || id >= vocabulary) return;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) % blocks_per_row * kColumnThreads +
                     static_cast<int64_t>(threadIdx.x)) *
                    N;
  if (c >= hidden) return;
  float* const to = d_table + id * table_stride + c;
  float sum[N];
  for (int i = 0; i < N; ++i) sum[i] = to[i];
  int64_t last = first + 1;
  while (last < tokens && ids[last] == id) ++last;
#pragma unroll 4
  for (int64_t n = first; n < last; ++n) {
    const Pack<T, N> pack = load<N>(d_out + order[n] * out_stride + c);
    for (int i = 0; i < N; ++i) sum[i] += to_float(pack.values[i]);
  }
  for (int i = 0; i < N; ++i) to[i] = sum[i];
}

}  // namespace
}  // namespace cuda

void CudaOps::embedding_forward(const Tensor& out, const Tensor& table, const Tensor& ids) {
  const int64_t tokens = ids.rows(), hidden = table.row_size();
  cuda::expect(out, "embedding out", activation_, tokens, hidden);
  cuda::expect_weight(table, "embedding table", table.rows(), hidden);
  cuda::expect(ids, "embedding ids", DType::i32, tokens, 1);
  if (out.size() == 0) return;
  const bool packed = cuda::packable(out) && cuda::packable(table);
  cuda::with_type(activation_, [&]<class Out>(Out) {
    cuda::with_type(table.dtype, [&]<class In>(In) {
      // As many as 16 bytes of the wider type hold, so that neither side moves more.
      using Wider = std::conditional_t<(sizeof(Out) > sizeof(In)), Out, In>;
      cuda::with_pack<Wider>(packed, [&]<int N>(std::integral_constant<int, N>) {
        cuda::embedding_kernel<Out, In, N>
            <<<cuda::blocks_for(tokens, "tokens"),
               cuda::threads_for((hidden + N - 1) / N, cuda::kMostThreads), 0, stream_>>>(
                out.as<Out>(), table.as<In>(), ids.as<int32_t>(), hidden, out.row_stride, table.row_stride,
                table.rows(), static_cast<cuda::Fault*>(fault_.get()));
      });
    });
  });
  cuda::check_launch("embedding_kernel");
}

void CudaOps::embedding_backward(const Tensor& d_table, const Tensor& d_out, const Tensor& ids) {
  const int64_t tokens = ids.rows(), hidden = d_out.row_size(), vocabulary = d_table.rows();
  cuda::expect(d_table, "embedding d_table", DType::f32, vocabulary, hidden);
  cuda::expect(d_out, "embedding d_out", activation_, tokens, hidden);
  cuda::expect(ids, "embedding ids", DType::i32, tokens, 1);
  if (d_out.size() == 0) return;
  const int count = narrow<int>(tokens, "tokens to sort");
  // A negative id is outside these bits; it was reported and its block leaves.
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(vocabulary - 1))));
  size_t sort_bytes = 0;
  const int32_t* const no_keys = nullptr;
  int32_t* const no_values = nullptr;
  SINKLORA_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, sort_bytes, no_keys, no_values, no_values, no_values,
                                                count, 0, bits, stream_));
  const int64_t list = cuda::Workspace::aligned(tokens * size_of(DType::i32));
  scratch_.reserve(3 * list + cuda::Workspace::aligned(static_cast<int64_t>(sort_bytes)));
  auto* const numbers = static_cast<int32_t*>(scratch_.take(list));
  auto* const sorted_ids = static_cast<int32_t*>(scratch_.take(list));
  auto* const order = static_cast<int32_t*>(scratch_.take(list));
  void* const sort_memory = scratch_.take(static_cast<int64_t>(sort_bytes));
  const unsigned blocks = cuda::blocks_for((tokens + cuda::kThreads - 1) / cuda::kThreads, "tokens");
  cuda::number_tokens_kernel<<<blocks, cuda::kThreads, 0, stream_>>>(
      numbers, ids.as<int32_t>(), tokens, vocabulary, static_cast<cuda::Fault*>(fault_.get()));
  cuda::check_launch("number_tokens_kernel");
  SINKLORA_CUDA(cub::DeviceRadixSort::SortPairs(sort_memory, sort_bytes, ids.as<int32_t>(), sorted_ids,
                                                numbers, order, count, 0, bits, stream_));
  const bool packed = cuda::packable(d_out);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<T>(packed, [&]<int N>(std::integral_constant<int, N>) {
      const int64_t per_row = (hidden + cuda::kColumnThreads * N - 1) / (cuda::kColumnThreads * N);
      cuda::embedding_backward_kernel<T, N>
          <<<cuda::blocks_for(tokens * per_row, "tokens and columns"), cuda::kColumnThreads, 0, stream_>>>(
              d_table.as<float>(), d_out.as<T>(), sorted_ids, order, tokens, hidden, d_table.row_stride,
              d_out.row_stride, vocabulary, per_row);
    });
  });
  cuda::check_launch("embedding_backward_kernel");
}

}  // namespace sinklora
