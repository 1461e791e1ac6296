#include "model/activations.h"

#include <algorithm>

namespace sinklora {
namespace {

constexpr const char* kRecomputeNames[] = {"none", "cheap", "block"};

// One entry of a block: where it lies, its shape, and the first recompute level that does not keep it.
struct Entry {
  Tensor BlockActivations::*member;
  DType dtype;
  int64_t rows, columns;  // columns 0: a vector
  Recompute dropped_at;
  bool always_kept = false;
};

// The widest sum of LoRA ranks that any layer has on one of its projections.
int64_t widest(const Weights& weights, Projection LayerWeights::*projection) {
  int64_t rank = 0;
  for (const LayerWeights& layer : weights.layers) rank = std::max(rank, (layer.*projection).total_rank);
  return rank;
}

std::vector<Entry> entries(const LlamaConfig& c, const Weights& w, int64_t tokens, DType act, DType stat) {
  using B = BlockActivations;
  constexpr Recompute cheap = Recompute::cheap, block = Recompute::block;
  return {{&B::x, act, tokens, c.hidden_size, block, true},
          {&B::attention_normed, act, tokens, c.hidden_size, cheap},
          {&B::attention_reciprocal, stat, tokens, 0, block},
          {&B::qkv, act, tokens, c.qkv_width(), block},
          {&B::qkv_u, act, tokens, widest(w, &LayerWeights::qkv), block},
          {&B::attention, act, tokens, c.query_width(), block},
          {&B::lse, stat, c.num_heads, tokens, block},
          {&B::output_u, act, tokens, widest(w, &LayerWeights::output), block},
          {&B::x_mid, act, tokens, c.hidden_size, block},
          {&B::mlp_normed, act, tokens, c.hidden_size, cheap},
          {&B::mlp_reciprocal, stat, tokens, 0, block},
          {&B::gate_up, act, tokens, 2 * c.intermediate_size, block},
          {&B::gate_up_u, act, tokens, widest(w, &LayerWeights::gate_up), block},
          {&B::swiglu, act, tokens, c.intermediate_size, cheap},
          {&B::down_u, act, tokens, widest(w, &LayerWeights::down), block}};
}

bool is_vector(Tensor BlockActivations::*member) {
  return member == &BlockActivations::attention_reciprocal || member == &BlockActivations::mlp_reciprocal;
}

void take_entry(Arena& arena, BlockActivations& into, const Entry& entry) {
  if (is_vector(entry.member))
    arena.take(&(into.*entry.member), entry.dtype, {entry.rows});
  else if (entry.columns > 0)
    arena.take(&(into.*entry.member), entry.dtype, {entry.rows, entry.columns});
}

}  // namespace

Recompute parse_recompute(const std::string& word) {
  for (int i = 0; i < 3; ++i)
    if (word == kRecomputeNames[i]) return static_cast<Recompute>(i);
  fail_usage("--recompute {}: unknown; choose none, cheap, block or auto", word);
}

const char* name_of(Recompute recompute) { return kRecomputeNames[static_cast<int>(recompute)]; }

Activations::Activations(const LlamaConfig& config, const Weights& weights, int64_t max_tokens,
                         int64_t max_sequences, bool training, Recompute recompute, DType act, DType stat)
    : max_tokens_(max_tokens),
      max_sequences_(max_sequences),
      training_(training),
      recompute_(recompute),
      num_heads_(config.num_heads),
      weights_(weights),
      blocks_(training ? static_cast<size_t>(config.num_layers) : 1) {
  const int64_t tokens = max_tokens, hidden = config.hidden_size;
  for (const Entry& entry : entries(config, weights, tokens, act, stat)) {
    const bool kept = training && (entry.always_kept || recompute < entry.dropped_at);
    if (!kept)
      take_entry(arena, shared_, entry);
    else
      for (BlockActivations& block : blocks_) take_entry(arena, block, entry);
  }
  arena.take(&delta_, act, {tokens, hidden});
  arena.take(&final_x_, act, {tokens, hidden});
  arena.take(&final_normed_, act, {tokens, hidden});
  arena.take(&final_reciprocal_, stat, {tokens});
  arena.take(&nll_, stat, {tokens});
  arena.take(&ids_, DType::i32, {tokens});
  arena.take(&targets_, DType::i32, {tokens});
  arena.take(&positions_, DType::i32, {tokens});
  arena.take(&offsets_, DType::i64, {max_sequences + 1});
  if (!training) return;
  arena.take(&backward_.d_x, act, {tokens, hidden});
  arena.take(&backward_.d_normed, act, {tokens, hidden});
  arena.take(&backward_.d_qkv, act, {tokens, config.qkv_width()});
  arena.take(&backward_.d_attention, act, {tokens, config.query_width()});
  arena.take(&backward_.d_gate_up, act, {tokens, 2 * config.intermediate_size});
  arena.take(&backward_.d_swiglu, act, {tokens, config.intermediate_size});
}

BlockActivations Activations::block(int64_t layer, int64_t tokens) const {
  const BlockActivations& own = blocks_[training_ ? static_cast<size_t>(layer) : 0];
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  using B = BlockActivations;
  const auto whole = [&](Tensor B::*member) -> const Tensor& {
    return own.*member ? own.*member : shared_.*member;
  };
  // Dense for this batch, whatever shape the memory was laid out for.
  const auto dense = [&](Tensor B::*member, int64_t rows, int64_t columns) {
    const Tensor& memory = whole(member);
    return columns == 0 ? Tensor{} : Tensor(memory.data, memory.dtype, {rows, columns}, memory.device);
  };
  B result;
  for (const auto member : {&B::x, &B::attention_normed, &B::attention_reciprocal, &B::qkv, &B::attention,
                            &B::x_mid, &B::mlp_normed, &B::mlp_reciprocal, &B::gate_up, &B::swiglu})
    result.*member = whole(member).row_slice(0, tokens);
  result.lse = dense(&B::lse, num_heads_, tokens);
  result.qkv_u = dense(&B::qkv_u, tokens, weights.qkv.total_rank);
  result.output_u = dense(&B::output_u, tokens, weights.output.total_rank);
  result.gate_up_u = dense(&B::gate_up_u, tokens, weights.gate_up.total_rank);
  result.down_u = dense(&B::down_u, tokens, weights.down.total_rank);
  return result;
}

BackwardScratch Activations::backward(int64_t tokens) const {
  BackwardScratch result;
  using B = BackwardScratch;
  for (const auto member : {&B::d_x, &B::d_normed, &B::d_qkv, &B::d_attention, &B::d_gate_up, &B::d_swiglu})
    result.*member = (backward_.*member).row_slice(0, tokens);
  return result;
}

}  // namespace sinklora
