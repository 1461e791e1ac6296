#include "model/block.h"

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

}  // namespace

void block_forward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                   const Tensor& previous, const Tensor& previous_delta, const Tensor& delta) {
  const LlamaConfig& c = pass.config;
  const Heads heads(c, a.qkv);
  ops.residual_rmsnorm_forward(a.x, a.attention_normed, a.attention_reciprocal, previous, previous_delta,
                               w.attention_norm.value, c.rms_norm_eps);    // [T, H]
  ops.linear_forward(a.qkv, a.qkv_u, a.attention_normed, w.qkv.linear());  // [T, (Hq + 2 Hkv) D]
  ops.rope(heads.qk, pass.sequences.positions, pass.cosines, pass.sines, c.head_dim, false);
  ops.attention_forward(a.attention, a.lse, heads.q, heads.k, heads.v, pass.sequences, pass.pattern,
                        c.head_dim);
  ops.linear_forward(delta, a.output_u, a.attention, w.output.linear());  // [T, H]
  ops.residual_rmsnorm_forward(a.x_mid, a.mlp_normed, a.mlp_reciprocal, a.x, delta, w.mlp_norm.value,
                               c.rms_norm_eps);
  ops.linear_forward(a.gate_up, a.gate_up_u, a.mlp_normed, w.gate_up.linear());  // [T, 2F]
  ops.swiglu_forward(a.swiglu, a.gate_up);                                       // [T, F]
  ops.linear_forward(delta, a.down_u, a.swiglu, w.down.linear());                // [T, H]
}

void block_backward(Ops& ops, const PassContext& pass, const LayerWeights& w, const BlockActivations& a,
                    const BackwardScratch& g, const Tensor& delta, Recompute recompute, bool input_gradient) {
  const LlamaConfig& c = pass.config;
  if (recompute == Recompute::block) block_forward(ops, pass, w, a, a.x, {}, delta);
  if (recompute == Recompute::cheap) ops.swiglu_forward(a.swiglu, a.gate_up);

  // x_out = x_mid + down(swiglu(gate_up(norm(x_mid))))
  ops.linear_backward(g.d_swiglu, w.down.gradient(), g.d_x, a.swiglu, a.down_u, w.down.linear());
  ops.swiglu_backward(g.d_gate_up, g.d_swiglu, a.gate_up);
  if (recompute == Recompute::cheap)
    ops.rmsnorm_rebuild(a.mlp_normed, a.x_mid, a.mlp_reciprocal, w.mlp_norm.value);
  ops.linear_backward(g.d_normed, w.gate_up.gradient(), g.d_gate_up, a.mlp_normed, a.gate_up_u,
                      w.gate_up.linear());
  ops.rmsnorm_backward(g.d_x, w.mlp_norm.gradient, g.d_normed, a.x_mid, a.mlp_reciprocal, w.mlp_norm.value);

  // x_mid = x + output(attention(rope(qkv(norm(x)))))
  const Heads heads(c, a.qkv), d_heads(c, g.d_qkv);
  ops.linear_backward(g.d_attention, w.output.gradient(), g.d_x, a.attention, a.output_u, w.output.linear());
  ops.attention_backward(d_heads.q, d_heads.k, d_heads.v, g.d_attention, heads.q, heads.k, heads.v,
                         a.attention, a.lse, pass.sequences, pass.pattern, c.head_dim);
  ops.rope(d_heads.qk, pass.sequences.positions, pass.cosines, pass.sines, c.head_dim, true);
  if (recompute == Recompute::cheap)
    ops.rmsnorm_rebuild(a.attention_normed, a.x, a.attention_reciprocal, w.attention_norm.value);
  const bool need_normed = input_gradient || w.attention_norm.gradient;
  ops.linear_backward(need_normed ? g.d_normed : Tensor{}, w.qkv.gradient(), g.d_qkv, a.attention_normed,
                      a.qkv_u, w.qkv.linear());
  if (need_normed)
    ops.rmsnorm_backward(g.d_x, w.attention_norm.gradient, g.d_normed, a.x, a.attention_reciprocal,
                         w.attention_norm.value);
}

}  // namespace sinklora
