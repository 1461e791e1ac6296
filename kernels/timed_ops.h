// Any backend, with a stopwatch around every op: where the time of a step goes.
//
// While recording, each op is waited for before the next one is called, so that its time is its own. That
// costs what launching and waiting take, some 10 microseconds an op on a GPU, and hides what would have run
// side by side: the sum of the rows is above the time of a step that nobody watches. Otherwise calls are
// passed on as they are. Numbers are the backend's own, bit for bit.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace sinklora {

// All calls of one kind.
struct OpTime {
  std::string name;  // "rope", "attention backward", "linear forward [12288, 4096]" ([out, in])
  int64_t calls = 0;
  double milliseconds = 0;
  double operations = 0;  // of products (kernels/operation_counts.h); 0 for ops that only move memory
  double bytes = 0;       // read and written once, for ops that only move memory
};

class TimedOps : public Ops {
 public:
  explicit TimedOps(std::unique_ptr<Ops> backend) : ops_(std::move(backend)) {}

  // Forgets all rows and begins; stop() ends it.
  void record();
  void stop() { recording_ = false; }
  const std::vector<OpTime>& rows() const { return rows_; }  // in the order of first calls

  Device device() const override { return ops_->device(); }
  DType activation_dtype() const override { return ops_->activation_dtype(); }

  // Memory is asked for before a step: not timed.
  void* allocate(int64_t bytes) override { return ops_->allocate(bytes); }
  void release(void* memory) override { ops_->release(memory); }
  void* allocate_host(int64_t bytes) override { return ops_->allocate_host(bytes); }
  void release_host(void* memory) override { ops_->release_host(memory); }
  int64_t scratch_bytes(const PassShape& shape) const override { return ops_->scratch_bytes(shape); }
  void reserve_scratch(const PassShape& shape) override { ops_->reserve_scratch(shape); }
  void synchronize() override { ops_->synchronize(); }
  void* native_stream() const override { return ops_->native_stream(); }

  // While recording, every op runs by itself.
  void repeat(uint64_t key, const std::function<void()>& ops) override {
    recording_ ? ops() : ops_->repeat(key, ops);
  }

  void upload(const Tensor& to, const void* host) override;
  void download(void* host, const Tensor& from) override;
  void zero(const Tensor& to) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void start_offload(void* host, const Tensor& from, int slot) override;
  void start_fetch(const Tensor& to, const void* host, int slot) override;
  void finish_transfer(int slot) override;

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

 private:
  // What a call does, as OpTime counts it.
  struct Work {
    std::string name;
    double operations = 0, bytes = 0;
  };
  // `work` is asked for only while recording, before the clock runs.
  void time(const std::function<Work()>& work, const std::function<void()>& call);
  double pairs(const SequenceView& sequences, const AttentionPattern& pattern, int64_t heads);

  std::unique_ptr<Ops> ops_;
  bool recording_ = false;
  std::vector<OpTime> rows_;
  // The last answer of pairs(): the layers of a step ask the same question.
  struct {
    AttentionPattern pattern;
    std::vector<int64_t> offsets;
    int64_t heads = 0;
    double pairs = 0;
  } counted_;
};

}  // namespace sinklora
