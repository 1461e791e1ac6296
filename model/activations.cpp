#include "model/activations.h"

#include <algorithm>
#include <optional>

namespace sinklora {
namespace {

// One entry of a block: where it lies, its shape when kept and when shared, and the group that it is kept
// with.
struct Entry {
  Tensor BlockActivations::*member;
  DType dtype;
  int64_t rows, columns;      // columns 0: a vector
  std::optional<Kept> group;  // nothing: every layer keeps it
  int64_t shared_rows = rows;
};

// The widest sum of LoRA ranks that any layer has on one of its projections.
int64_t widest(const Weights& weights, Projection LayerWeights::*projection) {
  int64_t rank = 0;
  for (const LayerWeights& layer : weights.layers) rank = std::max(rank, (layer.*projection).total_rank);
  return rank;
}

std::vector<Entry> entries(const LlamaConfig& c, const Weights& w, int64_t tokens, int64_t tile, DType act,
                           DType stat) {
  using B = BlockActivations;
  const auto rank = [&](Projection LayerWeights::*projection) { return widest(w, projection); };
  return {{&B::attention_normed, act, tokens, c.hidden_size, Kept::attention_norm},
          {&B::attention_reciprocal, stat, tokens, 0, {}},
          {&B::qkv, act, tokens, c.qkv_width(), Kept::qkv},
          {&B::qkv_u, act, tokens, rank(&LayerWeights::qkv), Kept::qkv},
          {&B::attention, act, tokens, c.query_width(), Kept::attention},
          {&B::lse, stat, c.num_heads, tokens, Kept::attention},
          {&B::output_u, act, tokens, rank(&LayerWeights::output), Kept::x_mid},
          {&B::x_mid, act, tokens, c.hidden_size, Kept::x_mid},
          {&B::mlp_normed, act, tokens, c.hidden_size, Kept::mlp_norm},
          {&B::mlp_reciprocal, stat, tokens, 0, {}},
          {&B::gate_up, act, tokens, 2 * c.intermediate_size, Kept::gate_up, tile},
          {&B::gate_up_u, act, tokens, rank(&LayerWeights::gate_up), Kept::gate_up, tile},
          {&B::swiglu, act, tokens, c.intermediate_size, Kept::swiglu, tile},
          {&B::down_u, act, tokens, rank(&LayerWeights::down), {}}};
}

bool is_vector(Tensor BlockActivations::*member) {
  return member == &BlockActivations::attention_reciprocal || member == &BlockActivations::mlp_reciprocal;
}

void take_entry(Arena& arena, BlockActivations& into, const Entry& entry, int64_t rows) {
  if (is_vector(entry.member))
    arena.take(&(into.*entry.member), entry.dtype, {rows});
  else if (entry.columns > 0)
    arena.take(&(into.*entry.member), entry.dtype, {rows, entry.columns});
}

// A layer keeps what its group says, unless its backward has no use for it: inputs of linears without trained
// parameters.
KeptTensors useful(KeptTensors kept, const LayerWeights& w) {
  const auto drop_unless = [&](bool needed, Kept group) {
    if (!needed) kept.groups[static_cast<size_t>(group)] = false;
  };
  drop_unless(w.qkv.needs_input(), Kept::attention_norm);
  drop_unless(w.gate_up.needs_input(), Kept::mlp_norm);
  drop_unless(w.down.needs_input(), Kept::swiglu);
  return kept;
}

}  // namespace

Activations::Activations(const LlamaConfig& config, const Weights& weights, int64_t max_tokens,
                         int64_t max_sequences, bool training, const Recompute& recompute, int64_t mlp_tile,
                         DType act, DType stat)
    : max_tokens_(max_tokens),
      max_sequences_(max_sequences),
      training_(training),
      recompute_(recompute),
      num_heads_(config.num_heads),
      hidden_(config.hidden_size),
      query_width_(config.query_width()),
      weights_(weights),
      blocks_(training ? static_cast<size_t>(config.num_layers) : 1) {
  const int64_t tokens = max_tokens, tile = std::min(max_tokens, mlp_tile);
  take_blocks(config, tile, act, stat);
  arena.take(&passing_, act, {tokens, std::max(hidden_, query_width_)});
  arena.take(&final_x_, act, {tokens, hidden_});
  arena.take(&final_normed_, act, {tokens, hidden_});
  arena.take(&final_reciprocal_, stat, {tokens});
  arena.take(&nll_, stat, {tokens});
  arena.take(&ids_, DType::i32, {tokens});
  arena.take(&targets_, DType::i32, {tokens});
  arena.take(&positions_, DType::i32, {tokens});
  arena.take(&offsets_, DType::i64, {max_sequences + 1});
  arena.take(&cache_counts_, DType::i32, {tokens, 2});
  if (!training) return;
  arena.take(&backward_.d_x, act, {tokens, hidden_});
  arena.take(&backward_.d_qkv, act, {tokens, config.qkv_width()});
  arena.take(&backward_.d_swiglu, act, {tile, config.intermediate_size});
}

void Activations::take_blocks(const LlamaConfig& config, int64_t mlp_tile, DType act, DType stat) {
  const auto layers = static_cast<int64_t>(blocks_.size());
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto i = static_cast<size_t>(layer);
    if (training_) blocks_[i].kept = useful(recompute_.at(layer, layers), weights_.layers[i]);
  }
  x_slots_.resize(static_cast<size_t>(recompute_.offload && training_ ? kSlots : layers));
  for (Tensor& x : x_slots_) arena.take(&x, act, {max_tokens_, hidden_});
  host_x_.resize(static_cast<size_t>(layers));
  for (int64_t layer = 0; offloads(layer); ++layer)
    host.take(&host_x_[static_cast<size_t>(layer)], act, {max_tokens_, hidden_});

  for (const Entry& entry : entries(config, weights_, max_tokens_, mlp_tile, act, stat)) {
    bool all_keep = true;
    for (BlockActivations& block : blocks_)
      if (training_ && (!entry.group || block.kept[*entry.group]))
        take_entry(arena, block, entry, entry.rows);
      else
        all_keep = false;
    if (!all_keep) take_entry(arena, shared_, entry, entry.shared_rows);
  }
}

BlockActivations Activations::block(int64_t layer, int64_t tokens) const {
  const BlockActivations& own = blocks_[training_ ? static_cast<size_t>(layer) : 0];
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  using B = BlockActivations;
  const auto whole = [&](Tensor B::*member) -> const Tensor& {
    return own.*member ? own.*member : shared_.*member;
  };
  // Dense for this batch, whatever shape the memory was laid out for.
  const auto dense = [](const Tensor& memory, int64_t rows, int64_t columns) {
    return columns == 0 ? Tensor{} : Tensor(memory.data, memory.dtype, {rows, columns}, memory.device);
  };
  const auto rows_of = [&](Tensor B::*member) { return std::min(tokens, whole(member).rows()); };
  B result;
  result.kept = own.kept;
  result.x = x_slots_[static_cast<size_t>(layer) % x_slots_.size()].row_slice(0, tokens);
  for (const auto member : {&B::attention_normed, &B::attention_reciprocal, &B::qkv, &B::attention, &B::x_mid,
                            &B::mlp_normed, &B::mlp_reciprocal, &B::gate_up, &B::swiglu})
    result.*member = whole(member).row_slice(0, rows_of(member));
  result.lse = dense(whole(&B::lse), num_heads_, tokens);
  result.qkv_u = dense(whole(&B::qkv_u), tokens, weights.qkv.total_rank);
  result.output_u = dense(whole(&B::output_u), tokens, weights.output.total_rank);
  if (weights.gate_up.total_rank > 0)
    result.gate_up_u = dense(whole(&B::gate_up_u), rows_of(&B::gate_up_u), weights.gate_up.total_rank);
  result.down_u = dense(whole(&B::down_u), tokens, weights.down.total_rank);
  result.delta = dense(passing_, tokens, hidden_);
  return result;
}

BackwardScratch Activations::backward(int64_t tokens) const {
  const auto passing = [&](int64_t columns) {
    return Tensor(passing_.data, passing_.dtype, {tokens, columns}, passing_.device);
  };
  return {.d_x = backward_.d_x.row_slice(0, tokens),
          .d_normed = passing(hidden_),
          .d_qkv = backward_.d_qkv.row_slice(0, tokens),
          .d_attention = passing(query_width_),
          .d_swiglu = backward_.d_swiglu.row_slice(0, std::min(tokens, backward_.d_swiglu.rows()))};
}

}  // namespace sinklora
