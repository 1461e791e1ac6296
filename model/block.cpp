#include "model/block.h"

#include <algorithm>
#include <vector>

namespace sinklora {
namespace {

// The three windows of a [T, (Hq + 2 Hkv) D] buffer, and the first two of them together for RoPE.
struct Heads {
  Heads(const LlamaConfig& c, const Tensor& qkv)
      : q(qkv.column_slice(0, c.query_width())),
        k(qkv.column_slice(c.query_width(), c.kv_width())),
        v(qkv.column_slice(c.query_width() + c.kv_width(), c.kv_width())),
        qk(qkv.column_slice(0, c.query_width() + c.kv_width())) {}
  Tensor q, k, v, qk;
};

// Rows [begin, begin + rows) of what the MLP works on; a tensor that is one tile is used from its first row.
struct MlpTile {
  MlpTile(const BlockActivations& a, int64_t begin, int64_t rows) {
    const int64_t tokens = a.x.rows();
    const auto part = [&](const Tensor& whole) {
      return whole ? whole.row_slice(whole.rows() == tokens ? begin : 0, rows) : Tensor{};
    };
    normed = part(a.mlp_normed), gate_up = part(a.gate_up), gate_up_u = part(a.gate_up_u);
    swiglu = part(a.swiglu), down_u = part(a.down_u), delta = part(a.delta);
  }
  Tensor normed, gate_up, gate_up_u, swiglu, down_u, delta;
};

template <class Work>
void for_each_tile(int64_t tokens, int64_t tile, Work&& work) {
  for (int64_t begin = 0; begin < tokens; begin += tile) work(begin, std::min(tile, tokens - begin));
}

// qkv and attention of a block whose a.attention_normed is there.
void qkv_forward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a) {
  ops.linear_forward(a.qkv, a.qkv_u, a.attention_normed, w.qkv.linear());  // [T, (Hq + 2 Hkv) D]
  ops.rope(Heads(pass.config, a.qkv).qk, pass.sequences.positions, pass.cosines, pass.sines,
           pass.config.head_dim, false);
}
void attention_forward(Ops& ops, const PassContext& pass, const BlockActivations& a) {
  const Heads heads(pass.config, a.qkv);
  ops.attention_forward(a.attention, a.lse, heads.q, heads.k, heads.v, pass.sequences, pass.pattern,
                        pass.config.head_dim);
}
void cached_attention(Ops& ops, const PassContext& pass, const BlockActivations& a,
                      std::span<const CacheStep> steps) {
  const Heads heads(pass.config, a.qkv);
  const int64_t head_dim = pass.config.head_dim;
  if (pass.counts) {
    std::vector<KvStep> all;
    for (const CacheStep& step : steps) all.push_back(step.kv);
    return ops.decode_attention(a.attention, a.lse, heads.q, heads.k, heads.v, all, pass.counts, pass.cosines,
                                pass.sines, head_dim);
  }
  for (const auto& [kv, first_row, rows] : steps) {
    const auto own = [first = first_row, count = rows](const Tensor& t) { return t.row_slice(first, count); };
    const Tensor k = own(heads.k), v = own(heads.v);
    ops.cached_attention(own(a.attention), a.lse.column_slice(first_row, rows), kv.new_mass, own(heads.q), k,
                         v, kv.cache, pass.cosines, pass.sines, head_dim);
    ops.append_to_cache(kv.cache, k, v, kv.new_mass, kv.first_position, kv.keep);
  }
}
// a.x_mid = a.x + output(a.attention), and its norm.
void output_forward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a) {
  ops.linear_forward(a.delta, a.output_u, a.attention, w.output.linear());  // [T, H]
  ops.residual_rmsnorm_forward(a.x_mid, a.mlp_normed, a.mlp_reciprocal, a.x, a.delta, w.mlp_norm.value,
                               pass.config.rms_norm_eps);
}

// a.delta = down(swiglu(gate_up(a.mlp_normed))).
void mlp_forward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a) {
  for_each_tile(a.x.rows(), pass.mlp_tile, [&](int64_t begin, int64_t rows) {
    const MlpTile t(a, begin, rows);
    ops.linear_forward(t.gate_up, t.gate_up_u, t.normed, w.gate_up.linear());  // [tile, 2F]
    ops.swiglu_forward(t.swiglu, t.gate_up);                                   // [tile, F]
    ops.linear_forward(t.delta, t.down_u, t.swiglu, w.down.linear());          // [tile, H]
  });
}

// What the backward needs of the attention part and the MLP's norm, and is not there.
void rebuild(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a) {
  if (!a.kept[Kept::qkv]) {
    if (!a.kept[Kept::attention_norm])
      ops.rmsnorm_rebuild(a.attention_normed, a.x, a.attention_reciprocal, w.attention_norm.value);
    qkv_forward(ops, pass, w, a);
  }
  if (!a.kept[Kept::attention]) attention_forward(ops, pass, a);
  if (!a.kept[Kept::x_mid])
    output_forward(ops, pass, w, a);
  else if (!a.kept[Kept::mlp_norm] && (!a.kept[Kept::gate_up] || w.gate_up.needs_input()))
    ops.rmsnorm_rebuild(a.mlp_normed, a.x_mid, a.mlp_reciprocal, w.mlp_norm.value);
}

// x_out = x_mid + down(swiglu(gate_up(norm(x_mid)))): from g.d_x to g.d_normed. W: adapters included.
void mlp_backward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                  const BackwardScratch& g) {
  for_each_tile(a.x.rows(), pass.mlp_tile, [&](int64_t begin, int64_t rows) {
    const MlpTile t(a, begin, rows);
    const Tensor d_swiglu = g.d_swiglu.row_slice(0, rows), d_gate_up = t.gate_up;  // in place
    if (!a.kept[Kept::gate_up]) ops.linear_forward(t.gate_up, t.gate_up_u, t.normed, w.gate_up.linear());
    if (!a.kept[Kept::swiglu] && w.down.needs_input()) ops.swiglu_forward(t.swiglu, t.gate_up);
    // d_swiglu [tile, F] = d_x W_down
    ops.linear_backward(d_swiglu, w.down.gradient(), g.d_x.row_slice(begin, rows), t.swiglu, t.down_u,
                        w.down.linear());
    ops.swiglu_backward(d_gate_up, d_swiglu, t.gate_up);  // [tile, 2F]
    // d_normed [tile, H] = d_gate_up W_gate_up
    ops.linear_backward(g.d_normed.row_slice(begin, rows), w.gate_up.gradient(), d_gate_up, t.normed,
                        t.gate_up_u, w.gate_up.linear());
  });
}

}  // namespace

void block_forward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                   const Tensor& previous, const Tensor& previous_delta) {
  ops.residual_rmsnorm_forward(a.x, a.attention_normed, a.attention_reciprocal, previous, previous_delta,
                               w.attention_norm.value, pass.config.rms_norm_eps);  // [T, H]
  qkv_forward(ops, pass, w, a);                                                    // [T, (Hq + 2 Hkv) D]
  attention_forward(ops, pass, a);                                                 // [T, Hq D]
  output_forward(ops, pass, w, a);                                                 // [T, H]
  mlp_forward(ops, pass, w, a);                                                    // [T, H]
}

void block_extend(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                  const Tensor& previous, const Tensor& previous_delta, std::span<const CacheStep> steps) {
  const LlamaConfig& c = pass.config;
  const Heads heads(c, a.qkv);
  ops.residual_rmsnorm_forward(a.x, a.attention_normed, a.attention_reciprocal, previous, previous_delta,
                               w.attention_norm.value, c.rms_norm_eps);    // [T, H]
  ops.linear_forward(a.qkv, a.qkv_u, a.attention_normed, w.qkv.linear());  // [T, (Hq + 2 Hkv) D]
  ops.rope(steps.front().kv.cache.ranks ? heads.q : heads.qk, pass.sequences.positions, pass.cosines,
           pass.sines, c.head_dim, false);
  cached_attention(ops, pass, a, steps);  // [T, Hq D]
  output_forward(ops, pass, w, a);        // [T, H]
  mlp_forward(ops, pass, w, a);           // [T, H]
}

void block_backward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                    const BackwardScratch& g, bool input_gradient) {
  const LlamaConfig& c = pass.config;
  rebuild(ops, pass, w, a);
  mlp_backward(ops, pass, w, a, g);
  // d_x [T, H], now that of x_mid
  ops.rmsnorm_backward(g.d_x, w.mlp_norm.gradient, g.d_normed, a.x_mid, a.mlp_reciprocal, w.mlp_norm.value);

  // x_mid = x + output(attention(rope(qkv(norm(x)))))
  const Heads heads(c, a.qkv), d_heads(c, g.d_qkv);
  // d_attention [T, Hq D] = d_x W_output
  ops.linear_backward(g.d_attention, w.output.gradient(), g.d_x, a.attention, a.output_u, w.output.linear());
  // d_q [T, Hq D]; d_k, d_v [T, Hkv D]
  ops.attention_backward(d_heads.q, d_heads.k, d_heads.v, g.d_attention, heads.q, heads.k, heads.v,
                         a.attention, a.lse, pass.sequences, pass.pattern, c.head_dim);
  ops.rope(d_heads.qk, pass.sequences.positions, pass.cosines, pass.sines, c.head_dim, true);
  if (!a.kept[Kept::attention_norm] && w.qkv.needs_input())
    ops.rmsnorm_rebuild(a.attention_normed, a.x, a.attention_reciprocal, w.attention_norm.value);
  const bool need_normed = input_gradient || w.attention_norm.gradient;
  // d_normed [T, H] = d_qkv W_qkv
  ops.linear_backward(need_normed ? g.d_normed : Tensor{}, w.qkv.gradient(), g.d_qkv, a.attention_normed,
                      a.qkv_u, w.qkv.linear());
  // d_x [T, H], now that of x
  if (need_normed)
    ops.rmsnorm_backward(g.d_x, w.attention_norm.gradient, g.d_normed, a.x, a.attention_reciprocal,
                         w.attention_norm.value);
}

}  // namespace sinklora
