#include "kernels/timed_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "kernels/operation_counts.h"

namespace sinklora {
namespace {

double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

std::string linear_name(const char* direction, const Linear& linear) {
  return fmt::format("linear {} [{}, {}]", direction, linear.weight.rows(), linear.weight.row_size());
}

}  // namespace

void TimedOps::record() {
  rows_.clear();
  recording_ = true;
}

void TimedOps::time(const std::function<Work()>& work, const std::function<void()>& call) {
  if (!recording_) return call();
  const Work done = work();
  auto row = std::find_if(rows_.begin(), rows_.end(), [&](const OpTime& r) { return r.name == done.name; });
  if (row == rows_.end()) row = rows_.insert(rows_.end(), OpTime{done.name});
  ops_->synchronize();
  const auto begin = std::chrono::steady_clock::now();
  call();
  ops_->synchronize();
  row->milliseconds += 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  row->calls += 1;
  row->operations += done.operations;
  row->bytes += done.bytes;
}

double TimedOps::pairs(const SequenceView& sequences, const AttentionPattern& pattern, int64_t heads) {
  std::vector<int64_t> offsets(static_cast<size_t>(sequences.count) + 1);
  ops_->download(offsets.data(), sequences.offsets);
  if (counted_.heads != heads || counted_.offsets != offsets || !(counted_.pattern == pattern)) {
    counted_ = {pattern, offsets, heads, 0};
    for (size_t s = 1; s < offsets.size(); ++s)
      counted_.pairs += static_cast<double>(visible_pairs(pattern, heads, offsets[s] - offsets[s - 1]));
  }
  return counted_.pairs;
}

void TimedOps::upload(const Tensor& to, const void* host) {
  time([&] { return Work{"upload", 0, bytes_of({to})}; }, [&] { ops_->upload(to, host); });
}
void TimedOps::download(void* host, const Tensor& from) {
  time([&] { return Work{"download", 0, bytes_of({from})}; }, [&] { ops_->download(host, from); });
}
void TimedOps::zero(const Tensor& to) {
  time([&] { return Work{"zero", 0, bytes_of({to})}; }, [&] { ops_->zero(to); });
}
void TimedOps::copy(const Tensor& to, const Tensor& from) {
  time([&] { return Work{"copy", 0, bytes_of({to, from})}; }, [&] { ops_->copy(to, from); });
}

// Transfers go on beside the ops that follow: of these rows the last alone holds time, where one was waited
// for.
void TimedOps::start_offload(void* host, const Tensor& from, int slot) {
  time([&] { return Work{"start of an offload"}; }, [&] { ops_->start_offload(host, from, slot); });
}
void TimedOps::start_fetch(const Tensor& to, const void* host, int slot) {
  time([&] { return Work{"start of a fetch"}; }, [&] { ops_->start_fetch(to, host, slot); });
}
void TimedOps::finish_transfer(int slot) {
  time([&] { return Work{"wait for a transfer"}; }, [&] { ops_->finish_transfer(slot); });
}

void TimedOps::embedding_forward(const Tensor& out, const Tensor& table, const Tensor& ids) {
  time(
      [&] {
        const auto read = static_cast<double>(out.size() * size_of(table.dtype));
        return Work{"embedding forward", 0, read + bytes_of({out, ids})};
      },
      [&] { ops_->embedding_forward(out, table, ids); });
}
// What it moves depends on how many different tokens there are: bytes are not counted.
void TimedOps::embedding_backward(const Tensor& d_table, const Tensor& d_out, const Tensor& ids) {
  time([&] { return Work{"embedding backward"}; }, [&] { ops_->embedding_backward(d_table, d_out, ids); });
}

void TimedOps::residual_rmsnorm_forward(const Tensor& sum, const Tensor& normed, const Tensor& reciprocal,
                                        const Tensor& x, const Tensor& delta, const Tensor& gain,
                                        double epsilon) {
  time(
      [&] {
        const double added = delta ? bytes_of({delta, sum}) : 0;
        return Work{delta ? "rmsnorm forward with residual" : "rmsnorm forward", 0,
                    added + bytes_of({x, normed, reciprocal, gain})};
      },
      [&] { ops_->residual_rmsnorm_forward(sum, normed, reciprocal, x, delta, gain, epsilon); });
}
void TimedOps::rmsnorm_rebuild(const Tensor& normed, const Tensor& x, const Tensor& reciprocal,
                               const Tensor& gain) {
  time(
      [&] {
        return Work{"rmsnorm rebuild", 0, bytes_of({normed, x, reciprocal, gain})};
      },
      [&] { ops_->rmsnorm_rebuild(normed, x, reciprocal, gain); });
}
void TimedOps::rmsnorm_backward(const Tensor& d_x, const Tensor& d_gain, const Tensor& d_normed,
                                const Tensor& x, const Tensor& reciprocal, const Tensor& gain) {
  time(
      [&] {
        return Work{"rmsnorm backward", 0, bytes_of({d_x, d_x, d_normed, x, reciprocal, gain})};
      },
      [&] { ops_->rmsnorm_backward(d_x, d_gain, d_normed, x, reciprocal, gain); });
}

void TimedOps::linear_forward(const Tensor& y, const Tensor& u, const Tensor& x, const Linear& linear,
                              bool accumulate) {
  time(
      [&] {
        return Work{linear_name("forward", linear), linear_forward_operations(x.rows(), linear)};
      },
      [&] { ops_->linear_forward(y, u, x, linear, accumulate); });
}
void TimedOps::linear_backward(const Tensor& d_x, const LinearGradient& gradient, const Tensor& d_y,
                               const Tensor& x, const Tensor& u, const Linear& linear, bool accumulate) {
  time(
      [&] {
        return Work{linear_name("backward", linear),
                    linear_backward_operations(d_y.rows(), linear, gradient, static_cast<bool>(d_x))};
      },
      [&] { ops_->linear_backward(d_x, gradient, d_y, x, u, linear, accumulate); });
}

void TimedOps::rope(const Tensor& x, const Tensor& positions, const Tensor& cosines, const Tensor& sines,
                    int64_t head_dim, bool inverse) {
  time(
      [&] {
        return Work{inverse ? "rope backward" : "rope forward", 0, bytes_of({x, x, positions})};
      },
      [&] { ops_->rope(x, positions, cosines, sines, head_dim, inverse); });
}

void TimedOps::attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                 const Tensor& v, const SequenceView& sequences,
                                 const AttentionPattern& pattern, int64_t head_dim) {
  time(
      [&] {
        const double seen = pairs(sequences, pattern, q.row_size() / head_dim);
        return Work{"attention forward", attention_forward_operations(seen, head_dim)};
      },
      [&] { ops_->attention_forward(out, lse, q, k, v, sequences, pattern, head_dim); });
}
void TimedOps::attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v,
                                  const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& out, const Tensor& lse, const SequenceView& sequences,
                                  const AttentionPattern& pattern, int64_t head_dim) {
  time(
      [&] {
        const double seen = pairs(sequences, pattern, q.row_size() / head_dim);
        return Work{"attention backward", attention_backward_operations(seen, head_dim)};
      },
      [&] {
        ops_->attention_backward(d_q, d_k, d_v, d_out, q, k, v, out, lse, sequences, pattern, head_dim);
      });
}

void TimedOps::cached_attention(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                                const Tensor& k, const Tensor& v, const KvCacheView& cache,
                                const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  time(
      [&] {
        const auto tokens = static_cast<double>(q.rows()),
                   heads = static_cast<double>(q.row_size() / head_dim);
        const double seen = heads * tokens * (static_cast<double>(cache.count) + (tokens + 1) / 2);
        return Work{"cached attention", attention_forward_operations(seen, head_dim)};
      },
      [&] { ops_->cached_attention(out, lse, new_mass, q, k, v, cache, cosines, sines, head_dim); });
}
void TimedOps::append_to_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v,
                               const Tensor& new_mass, int64_t first_position, const KvRetention& keep) {
  time(
      [&] {
        return Work{"append to cache", 0, static_cast<double>(2 * (k.bytes() + v.bytes()))};
      },
      [&] { ops_->append_to_cache(cache, k, v, new_mass, first_position, keep); });
}
void TimedOps::decode_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                const Tensor& v, std::span<const KvStep> steps, const Tensor& counts,
                                const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  time(
      [&] {
        double read = 0;  // the caches, as far as they are filled
        for (const KvStep& step : steps)
          read += static_cast<double>(2 * step.cache.count * k.row_size() * size_of(k.dtype));
        return Work{"decode attention", 0, read + bytes_of({q, k, v, k, v, out})};
      },
      [&] { ops_->decode_attention(out, lse, q, k, v, steps, counts, cosines, sines, head_dim); });
}
void TimedOps::swiglu_forward(const Tensor& out, const Tensor& gate_up) {
  time(
      [&] {
        return Work{"swiglu forward", 0, bytes_of({out, gate_up})};
      },
      [&] { ops_->swiglu_forward(out, gate_up); });
}
void TimedOps::swiglu_backward(const Tensor& d_gate_up, const Tensor& d_out, const Tensor& gate_up) {
  time(
      [&] {
        return Work{"swiglu backward", 0, bytes_of({d_gate_up, d_out, gate_up})};
      },
      [&] { ops_->swiglu_backward(d_gate_up, d_out, gate_up); });
}

void TimedOps::head_cross_entropy(const Tensor& nll, const Tensor& d_hidden, const Tensor& d_weight,
                                  const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                                  double loss_scale) {
  time(
      [&] {
        return Work{
            "head and cross-entropy",
            head_operations(hidden.rows(), weight, static_cast<bool>(d_hidden), static_cast<bool>(d_weight))};
      },
      [&] { ops_->head_cross_entropy(nll, d_hidden, d_weight, hidden, weight, targets, loss_scale); });
}

void TimedOps::adamw(const Tensor& working, const Tensor& master, const Tensor& gradient, const Tensor& m,
                     const Tensor& v, const AdamWStep& step) {
  time(
      [&] {
        const double copied = working.data == master.data ? 0 : bytes_of({working});
        return Work{"adamw", 0, copied + bytes_of({gradient, master, master, m, m, v, v})};
      },
      [&] { ops_->adamw(working, master, gradient, m, v, step); });
}
double TimedOps::sum_of_squares(const Tensor& x) {
  double sum = 0;
  time([&] { return Work{"sum of squares", 0, bytes_of({x})}; }, [&] { sum = ops_->sum_of_squares(x); });
  return sum;
}

}  // namespace sinklora
