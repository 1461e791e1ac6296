// Between the checked entry points of attention.cpp and the kernels. Pointers and numbers only: no header
// that the CUDA compiler need not read.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention_pattern.h"
#include "kernels/cuda/rows.h"

namespace sinklora::cuda {

// Both throw an Error that names the kernel.
void check_attention(cudaError_t status, const char* kernel);
unsigned attention_blocks(int64_t count, const char* kernel);

template <class T>
struct AttentionArguments {
  Rows<const T> q, k, v;
  Rows<T> out;
  Rows<float> lse;         // [Hq, T]
  const int64_t* offsets;  // [S + 1]
  int64_t tokens, sequences, max_length;
  int64_t num_heads, num_kv_heads;
  AttentionPattern pattern;
  float scale;              // 1 / sqrt(D)
  int64_t first_query = 0;  // the forward leaves out tiles before it; 0 where there are several sequences
};

// The tiles of a batch, of `size` rows each, are counted without reading the offsets: those of sequence s
// begin at slot offsets[s] / size + s, which leaves at most one unused slot a sequence. Kernels are launched
// over slots: a row of one long document and many short ones is no more work than its tokens.
SINKLORA_HOST_DEVICE inline int64_t slot_base(int64_t offset, int64_t sequence, int64_t size) {
  return offset / size + sequence;
}
template <class T>
SINKLORA_HOST_DEVICE int64_t slots_of(const AttentionArguments<T>& a, int64_t size) {
  return slot_base(a.tokens, a.sequences, size);
}

// Rows of the forward's query tiles; of the backward's query tiles and key tiles.
constexpr int64_t forward_tile = 128, query_tile = 64, key_tile = 128;
// Query tiles of one head in a forward.
SINKLORA_HOST_DEVICE inline int64_t forward_slots(const AttentionArguments<uint16_t>& a) {
  return slots_of(a, forward_tile) - a.first_query / forward_tile;
}

template <class T>
struct AttentionGradientArguments : AttentionArguments<T> {
  Rows<const T> d_out;
  Rows<T> d_q, d_k, d_v;
  float* delta;        // [Hq, T]: sum over d of d_out * out
  float* d_q_sum;      // [Hq, query tiles, 64, D], swizzled: d_q while key tiles add to it in turn
  int* turn;           // [Hq, query tiles]: how many key tiles have added
  float* key_sum;      // [Hkv, key tiles, 2, 128 D], by thread: dK, dV while query heads add to them in turn
  int* key_turn;       // [Hkv, key tiles]: how many query heads have added
  int* ticket;         // the next item of work
  uint16_t* sink_d_s;  // [Hq, query tiles, 64, sink_columns]: dS of the sinks outside the run
  float* sink_parts;   // [query chunks, Hq, sink_columns, 2, D]: dK, dV of sinks outside the run, by
                       // chunk
  float* sink_base;    // [S, Hkv, sinks, 2, D]: dK, dV of sinks inside the run
  int64_t sink_columns;   // the number of sinks rounded up: 16, or a multiple of 64
  int64_t tile_slots;     // query tiles, unused ones included
  int64_t key_slots;      // key tiles likewise; 0 where no query heads share a KV head
  int64_t chunk;          // queries of one chunk
  int64_t heads_at_once;  // query heads whose work is interleaved
};

// Hopper's (wgmma); the backward needs what backward_sinks leaves, and backward_finish_sinks after it.
void forward_tensor_core(const AttentionArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream);
void backward_tensor_core(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim,
                          cudaStream_t stream);
// Of sm_80 and later (mma.sync); the backward needs delta, and no other scratch.
void forward_mma(const AttentionArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream);
void backward_mma(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream);
// attention_sinks.cu: delta; delta and the sinks' pairs before Hopper's main kernel, their gradients after
// it.
void backward_delta(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream);
void backward_sinks(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim, cudaStream_t stream);
void backward_finish_sinks(const AttentionGradientArguments<uint16_t>& a, int64_t head_dim,
                           cudaStream_t stream);

}  // namespace sinklora::cuda
