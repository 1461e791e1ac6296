// Rows of a table by token id: out[t] = table[ids[t]], and d_table[ids[t]] += d_out[t] in the order of t.
// out, d_out [T, H] in bf16 or f32; table [V, H] in bf16 or f32; d_table [V, H] in f32; ids [T] in i32.
// Forward moves 2 T H elements: a block per token.
//
// Backward: the tokens are sorted by id with a stable radix sort (CUB), so that equal ids become neighbours
// in the order of t, a run. A block adds up kChunk neighbours; what belongs to a run that begins in the chunk
// goes to d_table, what belongs to one begun before to a place of the chunk in scratch, and a second kernel
// adds these to the run's row in order. So an id that fills a tenth of a text is no longer than one that
// occurs once, and the order of every sum follows from the ids alone. Moves T H elements of d_out, each
// touched row of d_table twice, and for long runs a row of f32 in kChunk twice. Launch of the backward: a
// block per chunk and slice of columns; a thread asks for 8 rows at once.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"

namespace sinklora {
namespace cuda {
namespace {

constexpr int64_t kMostThreads = 512;
constexpr int kThreads = 256;
constexpr int kColumnThreads = 128;      // of a block of the backward
constexpr int kChunk = 16, kAtOnce = 8;  // sorted tokens

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

// The tokens in the order of their ids, and where the sums go.
struct Sorted {
  const int32_t *ids, *order;
  int64_t tokens, hidden, vocabulary;
  float* table;
  int64_t table_stride;
  float* carried;  // [chunks, H]: sums of the first tokens of a chunk, whose run began before it

  __device__ bool continues(int64_t n) const { return n > 0 && ids[n] == ids[n - 1]; }
  // Another id was reported: nothing of it is added.
  __device__ bool known(int32_t id) const { return id >= 0 && id < vocabulary; }
};
// A block's place: a chunk and the first column of this thread.
struct Place {
  int64_t chunk, column;
};
template <int N>
__device__ __forceinline__ Place own_place(int64_t hidden) {
  const int64_t slices = (hidden + kColumnThreads * N - 1) / (kColumnThreads * N);
  return {blockIdx.x / slices, (blockIdx.x % slices * kColumnThreads + threadIdx.x) * N};
}

template <class T, int N>
__global__ void __launch_bounds__(kColumnThreads, 5)
    embedding_backward_kernel(Sorted sorted, const T* d_out, int64_t out_stride) {
  const Place own = own_place<N>(sorted.hidden);
  if (own.column >= sorted.hidden) return;
  const int64_t first = own.chunk * kChunk;
  const int count = static_cast<int>(min(int64_t{kChunk}, sorted.tokens - first));
  bool begun_before = sorted.continues(first);
  Pack<float, N> sum{};
#pragma unroll
  for (int base = 0; base < kChunk; base += kAtOnce) {
    // First all addresses, then all rows, then all sums: memory is waited for twice, not at every row.
    int32_t id[kAtOnce + 1], token[kAtOnce];
#pragma unroll
    for (int i = 0; i <= kAtOnce; ++i) {
      const int64_t n = min(first + base + i, sorted.tokens - 1);
      id[i] = sorted.ids[n];
      if (i < kAtOnce) token[i] = sorted.order[n];
    }
    const auto ends = [&](int i) { return base + i + 1 == count || id[i] != id[i + 1]; };
    const auto row_of = [&](int i) { return sorted.table + id[i] * sorted.table_stride + own.column; };
    Pack<T, N> rows[kAtOnce];
    Pack<float, N> before[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      rows[i] = load<N>(d_out + token[i] * out_stride + own.column);
      if (base + i < count && ends(i) && sorted.known(id[i])) before[i] = load<N>(row_of(i));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (base + i >= count) break;
      for (int n = 0; n < N; ++n) sum.values[n] += to_float(rows[i].values[n]);
      if (!ends(i)) continue;
      if (begun_before) {
        store<N>(sorted.carried + own.chunk * sorted.hidden + own.column, sum);
      } else if (sorted.known(id[i])) {
        for (int n = 0; n < N; ++n) sum.values[n] += before[i].values[n];
        store<N>(row_of(i), sum);
      }
      begun_before = false;
      sum = {};
    }
  }
}

// d_table[id] += what was carried into the chunks over which the run of id goes on; by the first of them.
template <int N>
__global__ void __launch_bounds__(kColumnThreads) embedding_carry_kernel(Sorted sorted) {
  const Place own = own_place<N>(sorted.hidden);
  const int64_t first = own.chunk * kChunk;
  const int32_t id = sorted.ids[first];
  if (!sorted.continues(first) || !sorted.known(id)) return;
  if (first > kChunk && sorted.ids[first - kChunk - 1] == id) return;  // begun before the chunk before
  const bool inside = own.column < sorted.hidden;
  float* const to = sorted.table + id * sorted.table_stride + own.column;
  Pack<float, N> sum{};
  if (inside) sum = load<N>(to);
  for (int64_t chunk = own.chunk;; chunk += kWarp) {
    const int64_t at = (chunk + threadIdx.x % kWarp) * kChunk;
    const unsigned others = ~__ballot_sync(~0u, at < sorted.tokens && sorted.ids[at] == id);
    const int count = others == 0 ? kWarp : __ffs(static_cast<int>(others)) - 1;
    if (inside) {
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        const Pack<float, N> part = load<N>(sorted.carried + (chunk + i) * sorted.hidden + own.column);
        for (int n = 0; n < N; ++n) sum.values[n] += part.values[n];
      }
    }
    if (count < kWarp) break;
  }
  if (inside) store<N>(to, sum);
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
  const int64_t chunks = (tokens + cuda::kChunk - 1) / cuda::kChunk;
  const int64_t carried_bytes = cuda::Workspace::aligned(chunks * hidden * size_of(DType::f32));
  scratch_.reserve(3 * list + carried_bytes + cuda::Workspace::aligned(static_cast<int64_t>(sort_bytes)));
  auto* const numbers = static_cast<int32_t*>(scratch_.take(list));
  auto* const sorted_ids = static_cast<int32_t*>(scratch_.take(list));
  auto* const order = static_cast<int32_t*>(scratch_.take(list));
  auto* const carried = static_cast<float*>(scratch_.take(carried_bytes));
  void* const sort_memory = scratch_.take(static_cast<int64_t>(sort_bytes));
  const unsigned blocks = cuda::blocks_for((tokens + cuda::kThreads - 1) / cuda::kThreads, "tokens");
  cuda::number_tokens_kernel<<<blocks, cuda::kThreads, 0, stream_>>>(
      numbers, ids.as<int32_t>(), tokens, vocabulary, static_cast<cuda::Fault*>(fault_.get()));
  cuda::check_launch("number_tokens_kernel");
  SINKLORA_CUDA(cub::DeviceRadixSort::SortPairs(sort_memory, sort_bytes, ids.as<int32_t>(), sorted_ids,
                                                numbers, order, count, 0, bits, stream_));
  const cuda::Sorted sorted{sorted_ids,         order,  tokens, hidden, vocabulary, d_table.as<float>(),
                            d_table.row_stride, carried};
  // A thread takes 16 bytes of d_table, and as many elements of d_out.
  const bool packed = cuda::packable(d_out) && cuda::packable(d_table);
  cuda::with_type(activation_, [&]<class T>(T) {
    cuda::with_pack<float>(packed, [&]<int N>(std::integral_constant<int, N>) {
      const int64_t slices = (hidden + cuda::kColumnThreads * N - 1) / (cuda::kColumnThreads * N);
      const unsigned grid = cuda::blocks_for(chunks * slices, "tokens and columns");
      cuda::embedding_backward_kernel<T, N>
          <<<grid, cuda::kColumnThreads, 0, stream_>>>(sorted, d_out.as<T>(), d_out.row_stride);
      cuda::check_launch("embedding_backward_kernel");
      cuda::embedding_carry_kernel<N><<<grid, cuda::kColumnThreads, 0, stream_>>>(sorted);
      cuda::check_launch("embedding_carry_kernel");
    });
  });
}

}  // namespace sinklora
