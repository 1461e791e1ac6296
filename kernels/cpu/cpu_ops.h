// The CPU backend: one file per family of ops, templates on float and double. Everything runs at once, on the
// calling thread and OpenMP's.
//
// Work is divided into pieces that follow from the shapes alone, and every sum runs in an order of its own:
// equal inputs give equal bits on any number of threads.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "kernels/cpu/blas.h"
#include "kernels/ops.h"

namespace sinklora {

// Memory that grows to what was asked for at most and is used again by every later call.
class Scratch {
 public:
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(bytes(count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  void* bytes(int64_t wanted);
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t capacity_ = 0;
};

class CpuOps final : public Ops {
 public:
  explicit CpuOps(DType compute);

  Device device() const override { return Device::cpu; }
  DType activation_dtype() const override { return compute_; }

  void* allocate(int64_t bytes) override;
  void release(void* memory) override;
  void upload(const Tensor& to, const void* host) override;
  void download(void* host, const Tensor& from) override;
  void zero(const Tensor& to) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void synchronize() override {}
  void* allocate_host(int64_t bytes) override { return allocate(bytes); }
  void release_host(void* memory) override { release(memory); }
  void start_offload(void* host, const Tensor& from, int slot) override;
  void start_fetch(const Tensor& to, const void* host, int slot) override;
  void finish_transfer(int) override {}
  int64_t scratch_bytes(const PassShape& shape) const override;
  void reserve_scratch(const PassShape&) override {}

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

  // What head_cross_entropy takes of this: the most of all ops.
  int64_t head_scratch_bytes(int64_t tokens, int64_t vocabulary, int64_t width, bool gradients) const;

 private:
  // Runs a kernel, a generic lambda over a value of the compute type.
  template <class Kernel>
  void run(Kernel&& kernel) {
    if (compute_ == DType::f64)
      kernel(double{});
    else
      kernel(float{});
  }

  DType compute_;
  Scratch weights_, activations_, sums_;
};

// ---- what the kernels share ----

template <class T>
Matrix<T> matrix(const Tensor& tensor) {
  return {tensor.as<T>(), tensor.row_stride};
}

// A tensor that is not what an op's contract says is a defect of the caller.
void expect(const Tensor& tensor, std::string_view name, DType dtype, int64_t rows, int64_t columns);
// A frozen weight: the compute type, bf16 or f32.
void expect_weight(const Tensor& tensor, std::string_view name, DType compute, int64_t rows, int64_t columns);
void expect_contiguous(const Tensor& tensor, std::string_view name);

// `count` numbers of type `from_type`, as T.
template <class T>
void convert(T* to, const void* from, DType from_type, int64_t count);
template <class T>
void convert_row(T* to, const Tensor& from, int64_t row) {
  const int64_t offset = row * from.row_stride * size_of(from.dtype);
  convert(to, static_cast<const char*>(from.data) + offset, from.dtype, from.row_size());
}

// Parallel loops below this many elements cost more than they save.
constexpr int64_t kParallelElements = 8192;

// A weight [out, in] in panels of rows that fit into the last cache, in the compute type. The panels are the
// same whatever the type in memory, so that a bf16 weight gives the bits of its f32 copy.
template <class T>
class WeightPanels {
 public:
  static constexpr int64_t kPanelElements = 2 << 20;  // 8 MiB of floats
  WeightPanels(const Tensor& weight, Scratch& scratch);
  int64_t count() const { return count_; }
  int64_t begin(int64_t panel) const { return panel * rows_; }
  int64_t rows(int64_t panel) const { return std::min(rows_, weight_.rows() - begin(panel)); }
  int64_t most_rows() const { return rows_; }
  Matrix<T> operator[](int64_t panel);  // good until the next call

 private:
  Tensor weight_;
  int64_t rows_, count_;
  T* converted_ = nullptr;
};

}  // namespace sinklora
