// Attention on the GPU, seen from the tests and the benchmark: buffers with guard zones, patterns by name.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/attention_pattern.h"
#include "kernels/cuda/attention.h"

namespace sinklora::test {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) fail_internal("CUDA: {}", cudaGetErrorString(status));
}

// Device memory between two zones of 0xff bytes; begins poisoned with 0xff too (NaN in every float type).
class GuardedMemory {
 public:
  explicit GuardedMemory(int64_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&memory_, static_cast<size_t>(bytes + 2 * zone)));
    poison();
  }
  ~GuardedMemory() { cudaFree(memory_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  void poison() { check(cudaMemset(memory_, 0xff, static_cast<size_t>(bytes_ + 2 * zone))); }
  char* data() const { return static_cast<char*>(memory_) + zone; }
  int64_t bytes() const { return bytes_; }
  void upload(const void* from) {
    check(cudaMemcpy(data(), from, static_cast<size_t>(bytes_), cudaMemcpyHostToDevice));
  }
  std::vector<char> download() const {
    std::vector<char> host(static_cast<size_t>(bytes_));
    check(cudaMemcpy(host.data(), data(), host.size(), cudaMemcpyDeviceToHost));
    return host;
  }
  bool guards_intact() const {
    std::vector<unsigned char> host(2 * zone);
    check(cudaMemcpy(host.data(), memory_, zone, cudaMemcpyDeviceToHost));
    check(cudaMemcpy(host.data() + zone, data() + bytes_, zone, cudaMemcpyDeviceToHost));
    for (const unsigned char byte : host)
      if (byte != 0xff) return false;
    return true;
  }

 private:
  static constexpr int64_t zone = 1 << 16;
  int64_t bytes_;
  void* memory_ = nullptr;
};

inline AttentionPattern pattern_of(const std::string& name, int64_t heads, int64_t group, int64_t sinks) {
  if (name == "full") return {.first_shifted_head = heads};
  if (name == "fixed") return {.group_size = group, .first_shifted_head = heads, .num_sinks = sinks};
  if (name == "s2") return {.group_size = group, .first_shifted_head = heads - heads / 2, .num_sinks = sinks};
  if (name == "s2-wrap")
    return {.group_size = group, .first_shifted_head = heads - heads / 2, .num_sinks = sinks, .wrap = true};
  return {.group_size = group, .first_shifted_head = heads - heads / 4, .num_sinks = sinks};  // sf
}

using cuda::AttentionKernel;
inline const char* name_of(AttentionKernel kernel) {
  constexpr const char* names[] = {"automatic", "wgmma", "mma", "plain"};
  return names[static_cast<size_t>(kernel)];
}
// Those of this device.
inline std::vector<AttentionKernel> kernels_for(DType dtype, int64_t head_dim) {
  if (dtype == DType::f32) return {AttentionKernel::plain};
  std::vector<AttentionKernel> kernels;
  for (const AttentionKernel kernel : {AttentionKernel::wgmma, AttentionKernel::mma})
    if (cuda::attention_supported(dtype, head_dim, kernel)) kernels.push_back(kernel);
  return kernels;
}

// Everything one attention call reads and writes, on the device. q, k, v (and their gradients) are column
// slices of one buffer whose rows are 8 elements longer than they need be.
struct AttentionBuffers {
  AttentionBuffers(DType dtype, const std::vector<int64_t>& lengths, int64_t heads, int64_t kv_heads,
                   int64_t dim, const AttentionPattern& attention)
      : pattern(attention),
        offsets_host(offsets_of(lengths)),
        shape{dtype, offsets_host.back(), static_cast<int64_t>(lengths.size()), heads, kv_heads, dim},
        row(heads * dim + 8),
        fused_row((heads + 2 * kv_heads) * dim + 8),
        qkv(shape.tokens * fused_row * size_of(dtype)),
        d_qkv(qkv.bytes()),
        out(shape.tokens * row * size_of(dtype)),
        d_out(out.bytes()),
        lse(heads * shape.tokens * 4),
        offsets(static_cast<int64_t>(offsets_host.size()) * 8) {
    use(AttentionKernel::automatic);
    offsets.upload(offsets_host.data());
    sequences.offsets = Tensor(offsets.data(), DType::i64, {shape.sequences + 1}, Device::cuda);
    sequences.count = shape.sequences;
    for (const int64_t length : lengths) sequences.max_length = std::max(sequences.max_length, length);
  }

  // The kernel of the runs to come; forgets what others have written.
  void use(AttentionKernel chosen) {
    kernel = chosen;
    workspace = std::make_unique<GuardedMemory>(cuda::attention_backward_workspace(shape, pattern, kernel));
    for (GuardedMemory* memory : {&d_qkv, &out, &lse}) memory->poison();
  }

  Tensor part(const GuardedMemory& of, int64_t begin, int64_t columns, int64_t stride) const {
    Tensor view(of.data() + begin * size_of(shape.dtype), shape.dtype, {shape.tokens, columns}, Device::cuda);
    view.row_stride = stride;
    return view;
  }
  int64_t q_columns() const { return shape.num_heads * shape.head_dim; }
  int64_t kv_columns() const { return shape.num_kv_heads * shape.head_dim; }
  Tensor q_of(const GuardedMemory& of) const { return part(of, 0, q_columns(), fused_row); }
  Tensor k_of(const GuardedMemory& of) const { return part(of, q_columns(), kv_columns(), fused_row); }
  Tensor v_of(const GuardedMemory& of) const {
    return part(of, q_columns() + kv_columns(), kv_columns(), fused_row);
  }
  Tensor rows_of(const GuardedMemory& of) const { return part(of, 0, q_columns(), row); }
  Tensor lse_view() const {
    return Tensor(lse.data(), DType::f32, {shape.num_heads, shape.tokens}, Device::cuda);
  }

  void forward(cudaStream_t stream = nullptr) {
    cuda::attention_forward(rows_of(out), lse_view(), q_of(qkv), k_of(qkv), v_of(qkv), sequences, pattern,
                            shape.head_dim, stream, kernel);
  }
  void backward(cudaStream_t stream = nullptr) {
    cuda::attention_backward(q_of(d_qkv), k_of(d_qkv), v_of(d_qkv), rows_of(d_out), q_of(qkv), k_of(qkv),
                             v_of(qkv), rows_of(out), lse_view(), sequences, pattern, shape.head_dim,
                             workspace->data(), workspace->bytes(), stream, kernel);
  }

  static std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
    std::vector<int64_t> offsets{0};
    for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
    return offsets;
  }

  AttentionPattern pattern;
  std::vector<int64_t> offsets_host;
  cuda::AttentionShape shape;
  int64_t row, fused_row;
  GuardedMemory qkv, d_qkv, out, d_out, lse, offsets;
  std::unique_ptr<GuardedMemory> workspace;
  AttentionKernel kernel = AttentionKernel::automatic;
  SequenceView sequences;
};

}  // namespace sinklora::test
