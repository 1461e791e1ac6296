// The CUDA backend: one .cu file per family of ops, one stream, activations in bf16 or f32, statistics,
// gradients and the optimizer in f32. No floating-point atomics in an order that may change: sums run in
// orders that follow from the shapes.
#pragma once

#include <span>
#include <string_view>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/recording.h"
#include "kernels/ops.h"

namespace sinklora {

class CudaOps final : public Ops {
 public:
  CudaOps(DType activation, int device_index);
  ~CudaOps() override;
  CudaOps(const CudaOps&) = delete;
  CudaOps& operator=(const CudaOps&) = delete;

  Device device() const override { return Device::cuda; }
  DType activation_dtype() const override { return activation_; }

  void* allocate(int64_t bytes) override;
  void release(void* memory) override;
  void upload(const Tensor& to, const void* host) override;
  void download(void* host, const Tensor& from) override;
  void zero(const Tensor& to) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void synchronize() override;
  void* allocate_host(int64_t bytes) override;
  void release_host(void* memory) override;
  void start_offload(void* host, const Tensor& from, int slot) override;
  void start_fetch(const Tensor& to, const void* host, int slot) override;
  void finish_transfer(int slot) override;
  void repeat(uint64_t key, const std::function<void()>& ops) override;
  int64_t scratch_bytes(const PassShape& shape) const override;
  void reserve_scratch(const PassShape& shape) override;

  void embedding_forward(const Tensor& out, const Tensor& table, const Tensor& ids) override;
  void embedding_backward(const Tensor& d_table, const Tensor& d_out, const Tensor& ids) override;
  void residual_rmsnorm_forward(const Tensor& sum, const Tensor& normed, const Tensor& reciprocal,
                                const Tensor& x, const Tensor& delta, const Tensor& gain,
                                double epsilon) override;
  void rmsnorm_rebuild(const Tensor& normed, const Tensor& x, const Tensor& reciprocal,
                       const Tensor& gain) override;
  void rmsnorm_backward(const Tensor& d_x, const Tensor& d_gain, const Tensor& d_normed, const Tensor& x,
                        const Tensor& reciprocal, const Tensor& gain) override;
  void linear_forward(const Tensor& y, const Tensor& u, const Tensor& x, const Linear& linear,
                      bool accumulate) override;
  void linear_backward(const Tensor& d_x, const LinearGradient& gradient, const Tensor& d_y, const Tensor& x,
                       const Tensor& u, const Linear& linear, bool accumulate) override;
  void rope(const Tensor& x, const Tensor& positions, const Tensor& cosines, const Tensor& sines,
            int64_t head_dim, bool inverse) override;
  void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const SequenceView& sequences, const AttentionPattern& pattern,
                         int64_t head_dim) override;
  void attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                          const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                          const Tensor& lse, const SequenceView& sequences, const AttentionPattern& pattern,
                          int64_t head_dim) override;
  void cached_attention(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                        const Tensor& k, const Tensor& v, const KvCacheView& cache, const Tensor& cosines,
                        const Tensor& sines, int64_t head_dim) override;
  void append_to_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v, const Tensor& new_mass,
                       int64_t first_position, const KvRetention& keep) override;
  void decode_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                        const Tensor& v, std::span<const KvStep> steps, const Tensor& counts,
                        const Tensor& cosines, const Tensor& sines, int64_t head_dim) override;
  void swiglu_forward(const Tensor& out, const Tensor& gate_up) override;
  void swiglu_backward(const Tensor& d_gate_up, const Tensor& d_out, const Tensor& gate_up) override;
  void head_cross_entropy(const Tensor& nll, const Tensor& d_hidden, const Tensor& d_weight,
                          const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                          double loss_scale) override;
  void adamw(const Tensor& working, const Tensor& master, const Tensor& gradient, const Tensor& m,
             const Tensor& v, const AdamWStep& step) override;
  double sum_of_squares(const Tensor& x) override;

  cudaStream_t stream() const { return stream_; }
  void* native_stream() const override { return stream_; }
  // The algorithms that cuBLASLt chose so far, one line per shape.
  std::string describe_plans() const { return gemm_->describe_plans(); }

 private:
  // The weight in the activations' type: itself, or a copy in scratch memory that is good until the next
  // call.
  Tensor converted(const Tensor& weight);
  // What the ops of a pass share, and room for the largest converted weight.
  struct ScratchNeeds {
    int64_t ops, weight;
  };
  ScratchNeeds scratch_needs(const PassShape& shape) const;
  // The two ways of cached_attention (cached_attention.cu). scores_alone: out and lse are there.
  void attend_by_flash(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                       const Tensor& k, const Tensor& v, const KvCacheView& cache, const Tensor& cosines,
                       const Tensor& sines, int64_t head_dim);
  void attend_by_runs(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                      const Tensor& k, const Tensor& v, const KvCacheView& cache, const Tensor& cosines,
                      const Tensor& sines, int64_t head_dim, bool scores_alone);
  // A copy in the transfer stream, after the ops so far.
  void start_transfer(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, int slot);
  // Waits for the stream; throws what a kernel reported.
  void wait();

  DType activation_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<cuda::Gemm> gemm_;
  cuda::Workspace scratch_, weights_;
  cuda::Recording recording_;
  cuda::DeviceMemory fault_;
  cuda::PinnedMemory staging_;  // two halves in turn: the host fills one while the other travels
  cuda::PinnedMemory answer_;   // a Fault and a double
  cudaEvent_t sent_[2] = {};
  cudaStream_t transfers_ = nullptr;
  cudaEvent_t computed_ = nullptr, transferred_[2] = {};
  int next_half_ = 0;
};

namespace cuda {

// A tensor that is not what an op's contract says is a defect of the caller.
void expect(const Tensor& tensor, std::string_view name, DType dtype, int64_t rows, int64_t columns);
// A frozen weight: the activations' type, bf16 or f32.
void expect_weight(const Tensor& tensor, std::string_view name, int64_t rows, int64_t columns);
void expect_contiguous(const Tensor& tensor, std::string_view name);

// What single ops take of the scratch memory.
int64_t head_scratch_bytes(int64_t tokens, int64_t vocabulary);
int64_t linear_scratch_bytes(int64_t tokens, int64_t out, int64_t rank, DType activation);

// Element by element between float types, in the stream (copy.cu).
void launch_conversion(const Tensor& to, const Tensor& from, cudaStream_t stream);

}  // namespace cuda
}  // namespace sinklora
