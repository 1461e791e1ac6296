// A model's plain evaluation in bf16: every op in f64 on the CPU, every activation rounded to bf16 when it is
// written.
#pragma once

#include "test/cuda/gpu_test.h"

namespace sinklora::test {

class RoundingOps final : public Ops {
 public:
  Device device() const override { return Device::cpu; }
  DType activation_dtype() const override { return DType::f64; }
  void* allocate(int64_t bytes) override { return ops_->allocate(bytes); }
  void release(void* memory) override { ops_->release(memory); }
  void upload(const Tensor& to, const void* host) override { ops_->upload(to, host); }
  void download(void* host, const Tensor& from) override { ops_->download(host, from); }
  void zero(const Tensor& to) override { ops_->zero(to); }
  void copy(const Tensor& to, const Tensor& from) override { ops_->copy(to, from); }
  void synchronize() override {}
  void* allocate_host(int64_t bytes) override { return ops_->allocate_host(bytes); }
  void release_host(void* memory) override { ops_->release_host(memory); }
  void start_offload(void* host, const Tensor& from, int slot) override {
    ops_->start_offload(host, from, slot);
  }
  void start_fetch(const Tensor& to, const void* host, int slot) override {
    ops_->start_fetch(to, host, slot);
  }
  void finish_transfer(int slot) override { ops_->finish_transfer(slot); }
  int64_t scratch_bytes(const PassShape& shape) const override { return ops_->scratch_bytes(shape); }
  void reserve_scratch(const PassShape& shape) override { ops_->reserve_scratch(shape); }

  void embedding_forward(const Tensor& out, const Tensor& table, const Tensor& ids) override {
    ops_->embedding_forward(out, table, ids);
    round(out);
  }
  void embedding_backward(const Tensor& d_table, const Tensor& d_out, const Tensor& ids) override {
    ops_->embedding_backward(d_table, d_out, ids);
  }
  void residual_rmsnorm_forward(const Tensor& sum, const Tensor& normed, const Tensor& reciprocal,
                                const Tensor& x, const Tensor& delta, const Tensor& gain,
                                double epsilon) override {
    ops_->residual_rmsnorm_forward(sum, normed, reciprocal, x, delta, gain, epsilon);
    round(normed);
    if (delta) round(sum);
  }
  void rmsnorm_rebuild(const Tensor& normed, const Tensor& x, const Tensor& reciprocal,
                       const Tensor& gain) override {
    ops_->rmsnorm_rebuild(normed, x, reciprocal, gain);
    round(normed);
  }
  void rmsnorm_backward(const Tensor& d_x, const Tensor& d_gain, const Tensor& d_normed, const Tensor& x,
                        const Tensor& reciprocal, const Tensor& gain) override {
    ops_->rmsnorm_backward(d_x, d_gain, d_normed, x, reciprocal, gain);
    round(d_x);
  }
  void linear_forward(const Tensor& y, const Tensor& u, const Tensor& x, const Linear& linear,
                      bool accumulate) override {
    ops_->linear_forward(y, u, x, linear, accumulate);
    round(y);
    if (u) round(u);
  }
  void linear_backward(const Tensor& d_x, const LinearGradient& gradient, const Tensor& d_y, const Tensor& x,
                       const Tensor& u, const Linear& linear, bool accumulate) override {
    ops_->linear_backward(d_x, gradient, d_y, x, u, linear, accumulate);
    if (d_x) round(d_x);
  }
  void rope(const Tensor& x, const Tensor& positions, const Tensor& cosines, const Tensor& sines,
            int64_t head_dim, bool inverse) override {
    ops_->rope(x, positions, cosines, sines, head_dim, inverse);
    round(x);
  }
  void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const SequenceView& sequences, const AttentionPattern& pattern,
                         int64_t head_dim) override {
    ops_->attention_forward(out, lse, q, k, v, sequences, pattern, head_dim);
    round(out);
  }
  void attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                          const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                          const Tensor& lse, const SequenceView& sequences, const AttentionPattern& pattern,
                          int64_t head_dim) override {
    ops_->attention_backward(d_q, d_k, d_v, d_out, q, k, v, out, lse, sequences, pattern, head_dim);
    for (const Tensor& t : {d_q, d_k, d_v}) round(t);
  }
  void cached_attention(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                        const Tensor& k, const Tensor& v, const KvCacheView& cache, const Tensor& cosines,
                        const Tensor& sines, int64_t head_dim) override {
    ops_->cached_attention(out, lse, new_mass, q, k, v, cache, cosines, sines, head_dim);
    round(out);
  }
  void append_to_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v, const Tensor& new_mass,
                       int64_t first_position, const KvRetention& keep) override {
    ops_->append_to_cache(cache, k, v, new_mass, first_position, keep);
  }
  void decode_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                        const Tensor& v, std::span<const KvStep> steps, const Tensor& counts,
                        const Tensor& cosines, const Tensor& sines, int64_t head_dim) override {
    ops_->decode_attention(out, lse, q, k, v, steps, counts, cosines, sines, head_dim);
    round(out);
  }
  void swiglu_forward(const Tensor& out, const Tensor& gate_up) override {
    ops_->swiglu_forward(out, gate_up);
    round(out);
  }
  void swiglu_backward(const Tensor& d_gate_up, const Tensor& d_out, const Tensor& gate_up) override {
    ops_->swiglu_backward(d_gate_up, d_out, gate_up);
    round(d_gate_up);
  }
  void head_cross_entropy(const Tensor& nll, const Tensor& d_hidden, const Tensor& d_weight,
                          const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                          double loss_scale) override {
    ops_->head_cross_entropy(nll, d_hidden, d_weight, hidden, weight, targets, loss_scale);
    if (d_hidden) round(d_hidden);
  }
  void adamw(const Tensor& working, const Tensor& master, const Tensor& gradient, const Tensor& m,
             const Tensor& v, const AdamWStep& step) override {
    ops_->adamw(working, master, gradient, m, v, step);
  }
  double sum_of_squares(const Tensor& x) override { return ops_->sum_of_squares(x); }

 private:
  static void round(const Tensor& t) {
    for (int64_t r = 0; r < t.rows(); ++r)
      for (int64_t c = 0; c < t.row_size(); ++c) {
        double& x = t.as<double>()[r * t.row_stride + c];
        x = rounded(x, DType::bf16);
      }
  }
  std::unique_ptr<Ops> ops_ = make_cpu_ops(DType::f64);
};

}  // namespace sinklora::test
