// The operations of LLaMA training, one contract for every backend.
//
// Backends run asynchronously: an op may return before it has run, ops of one backend run in the order of the
// calls, and only download(), the functions that return numbers, and synchronize() wait. Arguments are views
// (kernels/tensor.h) into memory of the backend's device. Scratch memory is the backend's own.
//
// Notation: T tokens of all sequences of a batch, back to back, no padding; H hidden size; F intermediate
// size; V vocabulary; D head_dim; Hq query heads; Hkv key/value heads; R sum of the LoRA ranks of one linear.
//
// Dtypes: "act" is activation_dtype() (f32, f64 or bf16); "stat" is statistic_dtype() (f64 beside f64, else
// f32), the type of accumulators, gradients of parameters, row statistics and angles. Frozen weights may be
// act, bf16 or f32. Every op is deterministic: equal inputs and shapes give equal bits, on every run.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "kernels/attention_pattern.h"
#include "kernels/tensor.h"

namespace sinklora {

// The sequences of a batch, on the device.
struct SequenceView {
  Tensor offsets;          // i64 [S + 1]: sequence s is tokens [offsets[s], offsets[s + 1])
  Tensor positions;        // i32 [T]: position of each token in its sequence (for RoPE)
  int64_t count = 0;       // S
  int64_t max_length = 0;  // of one sequence
};

// One LoRA adapter on some output rows of a linear: y[:, row_begin : row_begin + out] += scale * (x A^T) B^T.
// Hu et al., arXiv 2106.09685.
struct LinearAdapter {
  Tensor a;               // act [rank, in]
  Tensor b;               // act [out, rank]
  int64_t row_begin = 0;  // first output of the linear that it adds to
  int64_t u_begin = 0;    // its columns in the saved u = x A^T
  double scale = 1.0;     // alpha / rank
};

// A linear layer, possibly several projections of one input stacked (q, k, v; gate, up). The A matrices of
// all adapters lie behind one another in memory: one [R, in] matrix.
struct Linear {
  Tensor weight;  // [out, in]
  std::span<const LinearAdapter> adapters;
};

struct AdapterGradient {
  Tensor a;  // stat [rank, in]
  Tensor b;  // stat [out, rank]
};
// Where a linear's parameter gradients are added; an empty weight is frozen and its gradient is never formed.
struct LinearGradient {
  Tensor weight;                              // stat [out, in] or empty
  std::span<const AdapterGradient> adapters;  // as many as Linear::adapters
};

// The largest shapes of a pass.
struct PassShape {
  int64_t tokens = 0, sequences = 1;   // T, S
  int64_t hidden = 0, vocabulary = 0;  // H, V
  int64_t widest = 0, rank = 0;        // outputs and R of any linear of a block
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t largest_weight = 0;       // elements of the largest frozen matrix,
  DType weight_dtype = DType::f32;  // which are kept like this
  AttentionPattern pattern{};       // of the backward
  bool training = false;
};

struct AdamWStep {
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0;
  int64_t step = 1;           // 1 for the first update: bias correction 1 - beta^step
  double gradient_scale = 1;  // multiplies the gradient first (clipping)
};

// Keys and values of one sequence in one layer, for generating text. A slot is a row; each KV head keeps
// tokens of its own choice in its D columns, in any order: what is evicted is overwritten, nothing moves.
// Ranks and mass need positions.
struct KvCacheView {
  Tensor k, v;        // act [capacity, Hkv * D]; k after RoPE, or before it where there are ranks
  Tensor positions;   // i32 [Hkv, capacity]: of the token in each slot; empty: nothing is ever evicted
  Tensor ranks;       // i32 [Hkv, capacity]: how many of the head's tokens come before it; or empty
  Tensor mass;        // stat [Hkv, capacity]: the attention that it received so far; or empty
  int64_t count = 0;  // tokens of every head, in slots [0, count)
};

// What every KV head keeps of a sequence that has outgrown its cache of `capacity` = sinks + heavy + recent
// slots: the first `sinks` tokens, the last `recent`, and the `heavy` ones of largest mass in between (the
// earlier one of equals). StreamingLLM, arXiv 2309.17453: heavy = 0. H2O, arXiv 2306.14048: sinks = 0.
struct KvRetention {
  int64_t sinks = 0, heavy = 0, recent = 0;
};

// One token that a sequence with a cache grows by.
struct KvStep {
  KvCacheView cache;
  KvRetention keep;
  Tensor new_mass;             // stat [Hkv, 1], or empty
  int64_t first_position = 0;  // of the token in its sequence
  int64_t most_count = 0;      // cache.count is at most this in all repetitions (Ops::repeat)
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual Device device() const = 0;
  virtual DType activation_dtype() const = 0;
  DType statistic_dtype() const { return activation_dtype() == DType::f64 ? DType::f64 : DType::f32; }

  // ---- memory ----
  virtual void* allocate(int64_t bytes) = 0;  // zeroed, aligned to 256 bytes; throws Error(does_not_fit)
  virtual void release(void* memory) = 0;
  virtual void upload(const Tensor& to, const void* host) = 0;  // contiguous; `host` may be reused on return
  virtual void download(void* host, const Tensor& from) = 0;    // contiguous; waits
  virtual void zero(const Tensor& to) = 0;
  virtual void copy(const Tensor& to, const Tensor& from) = 0;  // same shape; converts between float dtypes
  virtual void synchronize() = 0;
  // The queue in which the ops run, as the device's own libraries know it (a cudaStream_t), for whoever must
  // order other work behind them: communicators. The CPU has none.
  virtual void* native_stream() const { return nullptr; }

  // ---- transfers: tensors that wait in host memory while others are computed ----
  // A slot (0 or 1) carries one transfer at a time. It starts when the ops before it have run and goes on
  // beside those that follow, until finish_transfer(slot): ops after that see it complete. In between, an
  // offload's tensor must not be written and a fetch's must not be used.
  virtual void* allocate_host(int64_t bytes) = 0;  // page-locked on a GPU; throws Error(does_not_fit)
  virtual void release_host(void* memory) = 0;
  virtual void start_offload(void* host, const Tensor& from, int slot) = 0;  // contiguous
  virtual void start_fetch(const Tensor& to, const void* host, int slot) = 0;
  virtual void finish_transfer(int slot) = 0;

  // ---- repetition: many small ops given to the device as one ----
  // Runs `ops`, which calls ops of this backend. Where the key is that of the call before, a backend may run
  // again what that call did instead of calling `ops`: so equal keys mean equal ops on equal memory, and only
  // what lies in device memory may differ. `ops` uploads nothing and waits for nothing.
  virtual void repeat(uint64_t key, const std::function<void()>& ops) {
    static_cast<void>(key);
    ops();
  }

  // ---- scratch memory ----
  // What the ops of a pass of this shape will hold at most, libraries included, and its allocation ahead of
  // the first step. Ops that are asked for more grow it.
  virtual int64_t scratch_bytes(const PassShape& shape) const = 0;
  virtual void reserve_scratch(const PassShape& shape) = 0;

  // ---- embedding ----
  // out[t] = table[ids[t]].  out: act [T, H]; table: [V, H]; ids: i32 [T].
  virtual void embedding_forward(const Tensor& out, const Tensor& table, const Tensor& ids) = 0;
  // d_table[ids[t]] += d_out[t], in order of t.  d_table: stat [V, H].
  virtual void embedding_backward(const Tensor& d_table, const Tensor& d_out, const Tensor& ids) = 0;

  // ---- RMSNorm: y = gain * x * r,  r = 1 / sqrt(mean(x^2) + epsilon) (arXiv 1910.07467) ----
  // sum = x + delta, then the norm of sum. Without a delta, sum is x and is not written. sum, normed, x,
  // delta: act [T, H]; reciprocal: stat [T]; gain: [H].
  virtual void residual_rmsnorm_forward(const Tensor& sum, const Tensor& normed, const Tensor& reciprocal,
                                        const Tensor& x, const Tensor& delta, const Tensor& gain,
                                        double epsilon) = 0;
  // normed again from x and the saved reciprocal.
  virtual void rmsnorm_rebuild(const Tensor& normed, const Tensor& x, const Tensor& reciprocal,
                               const Tensor& gain) = 0;
  // d_x += r * (g - x * r^2 * mean(g * x)),  g = gain * d_normed;   d_gain += sum over t of d_normed * x * r.
  // d_gain: stat [H] or empty.
  virtual void rmsnorm_backward(const Tensor& d_x, const Tensor& d_gain, const Tensor& d_normed,
                                const Tensor& x, const Tensor& reciprocal, const Tensor& gain) = 0;

  // ---- linear ----
  // u = x A^T (all adapters at once);  y = x W^T + scale * u B^T, added into y when `accumulate`.
  // x: act [T, in]; y: act [T, out]; u: act [T, R], empty without adapters. y and x may be column slices.
  virtual void linear_forward(const Tensor& y, const Tensor& u, const Tensor& x, const Linear& linear,
                              bool accumulate = false) = 0;
  // d_x = d_y W + d_u A with d_u = scale * d_y B (added into d_x when `accumulate`; d_x may be empty);
  // dB += scale * d_y^T u;  dA += d_u^T x;  dW += d_y^T x where the gradient asks for it.
  // x may be empty when neither adapters nor a weight gradient need it.
  virtual void linear_backward(const Tensor& d_x, const LinearGradient& gradient, const Tensor& d_y,
                               const Tensor& x, const Tensor& u, const Linear& linear,
                               bool accumulate = false) = 0;

  // ---- rotary position embedding, half-split layout as Hugging Face has it (arXiv 2104.09864) ----
  // In place on `heads` heads side by side, x: act [T, heads * D]. With c, s = cosines,
  // sines[positions[t]] and the two halves a, b of a head:  a' = a c - b s,  b' = b c + a s.  `inverse`
  // negates s: the transpose, for the backward. cosines, sines: stat [P, D / 2].
  virtual void rope(const Tensor& x, const Tensor& positions, const Tensor& cosines, const Tensor& sines,
                    int64_t head_dim, bool inverse) = 0;

  // ---- attention ----
  // Per sequence and query head h, over the keys that `pattern` lets query i see, KV head h / (Hq / Hkv):
  //   s_ij = q_i . k_j / sqrt(D),  p_ij = softmax_j(s_ij),  out_i = sum_j p_ij v_j,
  //   lse[h, i] = log sum_j exp(s_ij).
  // q, out: act [T, Hq * D]; k, v: act [T, Hkv * D]; lse: stat [Hq, T]. Flash-style: T x T is never stored
  // (Dao, arXiv 2307.08691).
  virtual void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                 const Tensor& v, const SequenceView& sequences,
                                 const AttentionPattern& pattern, int64_t head_dim) = 0;
  // d_q, d_k, d_v are overwritten.
  virtual void attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v,
                                  const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& out, const Tensor& lse, const SequenceView& sequences,
                                  const AttentionPattern& pattern, int64_t head_dim) = 0;

  // ---- attention of n new tokens to a cache and, causally, to one another: inference only ----
  // Query i of head h sees the cached tokens of KV head h / (Hq / Hkv) and new keys 0 .. i; out and lse as in
  // attention_forward. With cache.ranks, keys come before RoPE and are turned here, cached ones to their rank
  // and new key j to count + j; otherwise cosines and sines are not read. With cache.mass, sums over new
  // queries i and the query heads h of a KV head:
  //   mass[slot] += sum_hi p_hi,slot,   new_mass[j] = sum_hi p_hij.
  // q, out: act [n, Hq * D], after RoPE; k, v: act [n, Hkv * D]; lse: stat [Hq, n]; new_mass: stat [Hkv, n]
  // or empty; cosines, sines: stat [P, D / 2], P >= count + n. Mass changes no bit of out and lse. Slots
  // from count on may be overwritten.
  virtual void cached_attention(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                                const Tensor& k, const Tensor& v, const KvCacheView& cache,
                                const Tensor& cosines, const Tensor& sines, int64_t head_dim) = 0;
  // Puts the n new tokens, of positions first_position + i, into the cache and evicts what `keep` does not
  // name once the capacity is exceeded. Afterwards the cache holds min(count + n, capacity) tokens a head,
  // which the caller notes in its views. k, v, new_mass: as cached_attention had them.
  virtual void append_to_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v,
                               const Tensor& new_mass, int64_t first_position, const KvRetention& keep) = 0;

  // Both at once for the next token of each of S sequences: row s of q, k, v belongs to steps[s]. counts: i32
  // [S, 2], what steps[s].cache.count and first_position say; a repetition goes by what counts holds then.
  // q, k, v, out, lse: as cached_attention has them, with S rows (columns of lse). The op before must not
  // write these caches: reading them may begin before it has ended.
  virtual void decode_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                const Tensor& v, std::span<const KvStep> steps, const Tensor& counts,
                                const Tensor& cosines, const Tensor& sines, int64_t head_dim) = 0;

  // ---- SwiGLU: act = silu(gate) * up (Shazeer, arXiv 2002.05202) ----
  // gate_up: act [T, 2F], gate in the first F columns.
  virtual void swiglu_forward(const Tensor& out, const Tensor& gate_up) = 0;
  // d_gate_up may be the same memory as gate_up.
  virtual void swiglu_backward(const Tensor& d_gate_up, const Tensor& d_out, const Tensor& gate_up) = 0;

  // ---- LM head and cross-entropy, a chunk of rows at a time: logits of a long sequence never exist ----
  // nll[t] = -log softmax(hidden[t] W^T)[targets[t]], and 0 where targets[t] < 0 (not scored). When d_hidden
  // is given: d_hidden = loss_scale * (softmax - onehot) W on scored rows, 0 on others; and d_weight +=
  // loss_scale * (softmax - onehot)^T hidden when given. nll: stat [T]; hidden, d_hidden: act [T, H]; weight:
  // [V, H]; d_weight: stat [V, H]; targets: i32 [T].
  virtual void head_cross_entropy(const Tensor& nll, const Tensor& d_hidden, const Tensor& d_weight,
                                  const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                                  double loss_scale) = 0;

  // ---- optimizer ----
  // AdamW with decoupled decay (Loshchilov & Hutter, arXiv 1711.05101), everything stat:
  //   g' = gradient_scale g;  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;
  //   w = w - lr * weight_decay * w - lr * mhat / (sqrt(vhat) + epsilon).
  // `working` is the copy that the forward reads: written from `master` after the update when it is other
  // memory.
  virtual void adamw(const Tensor& working, const Tensor& master, const Tensor& gradient, const Tensor& m,
                     const Tensor& v, const AdamWStep& step) = 0;
  // Sum over all elements of x^2 in f64 and in a fixed order (NaN and Inf show in it). Waits.
  virtual double sum_of_squares(const Tensor& x) = 0;
};

// The CPU backend: `compute` is f32 for work, f64 for the oracle of tests.
std::unique_ptr<Ops> make_cpu_ops(DType compute);

}  // namespace sinklora
