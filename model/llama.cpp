#include "model/llama.h"

#include <algorithm>
#include <numeric>

#include "model/rope.h"

namespace sinklora {

Llama::Llama(Ops& ops, const LlamaConfig& config, const ModelOptions& model, const PassOptions& pass)
    : ops_(ops),
      config_(config),
      options_(pass),
      weights_(config, model, ops.activation_dtype(), ops.statistic_dtype()),
      activations_(config, weights_, pass.max_tokens, pass.max_sequences, pass.training, pass.recompute,
                   ops.activation_dtype(), ops.statistic_dtype()),
      train_embedding_(model.train_embeddings || model.train_all) {
  tables_.take(&cosines_, ops.statistic_dtype(), {pass.max_context, config.head_dim / 2});
  tables_.take(&sines_, ops.statistic_dtype(), {pass.max_context, config.head_dim / 2});
}

std::vector<const Arena*> Llama::arenas() const {
  return {&weights_.frozen,  &weights_.trained,   &weights_.gradients,
          &weights_.moments, &activations_.arena, &tables_};
}

void Llama::allocate() {
  weights_.allocate(ops_);
  activations_.arena.allocate(ops_);
  tables_.allocate(ops_);
  const RopeTable table = make_rope_table(config_, options_.max_context);
  const auto put = [&](const Tensor& to, const std::vector<double>& numbers) {
    if (to.dtype == DType::f64) return ops_.upload(to, numbers.data());
    const std::vector<float> narrow_numbers(numbers.begin(), numbers.end());
    ops_.upload(to, narrow_numbers.data());
  };
  put(cosines_, table.cosines);
  put(sines_, table.sines);
}

PassContext Llama::start(const Batch& batch, const AttentionPattern& pattern) {
  const auto sequences = static_cast<int64_t>(batch.offsets.size()) - 1;
  if (batch.tokens() < 1 || batch.tokens() > activations_.max_tokens() ||
      sequences > activations_.max_sequences())
    fail_internal("a batch of {} tokens in {} sequences; memory was laid out for {} in {}", batch.tokens(),
                  sequences, activations_.max_tokens(), activations_.max_sequences());
  SequenceView view{activations_.offsets(sequences), activations_.positions(batch.tokens()), sequences, 0};
  for (int64_t s = 0; s < sequences; ++s)
    view.max_length = std::max(
        view.max_length, batch.offsets[static_cast<size_t>(s) + 1] - batch.offsets[static_cast<size_t>(s)]);
  if (view.max_length > options_.max_context)
    fail_internal("a sequence of {} tokens; the RoPE tables hold {}", view.max_length, options_.max_context);
  ops_.upload(activations_.ids(batch.tokens()), batch.ids.data());
  ops_.upload(activations_.targets(batch.tokens()), batch.targets.data());
  ops_.upload(view.positions, batch.positions.data());
  ops_.upload(view.offsets, batch.offsets.data());
  return {config_, pattern, view, cosines_, sines_};
}

void Llama::forward(const Batch& batch, const PassContext& pass) {
  const int64_t tokens = batch.tokens();
  const Tensor delta = activations_.delta(tokens);
  Tensor previous = activations_.block(0, tokens).x,
         previous_delta;  // the first block's input needs no addition
  ops_.embedding_forward(previous, weights_.embedding.value, activations_.ids(tokens));
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const BlockActivations a = activations_.block(layer, tokens);
    block_forward(ops_, pass, weights_.layers[static_cast<size_t>(layer)], a, previous, previous_delta,
                  delta);
    previous = a.x_mid;
    previous_delta = delta;
  }
  ops_.residual_rmsnorm_forward(activations_.final_x(tokens), activations_.final_normed(tokens),
                                activations_.final_reciprocal(tokens), previous, delta,
                                weights_.final_norm.value, config_.rms_norm_eps);
}

std::vector<double> Llama::nll(const Batch& batch, const AttentionPattern& pattern) {
  const PassContext pass = start(batch, pattern);
  forward(batch, pass);
  const Tensor nll = activations_.nll(batch.tokens());
  ops_.head_cross_entropy(nll, {}, {}, activations_.final_normed(batch.tokens()), weights_.head.value,
                          activations_.targets(batch.tokens()), 0.0);
  return download_numbers<double>(ops_, nll);
}

double Llama::accumulate_gradients(const Batch& batch, const AttentionPattern& pattern, double loss_scale) {
  if (!activations_.training()) fail_internal("this model was laid out for inference");
  const int64_t tokens = batch.tokens();
  const PassContext pass = start(batch, pattern);
  forward(batch, pass);

  const BackwardScratch g = activations_.backward(tokens);
  const Tensor nll = activations_.nll(tokens);
  ops_.head_cross_entropy(nll, g.d_normed, weights_.head.gradient, activations_.final_normed(tokens),
                          weights_.head.value, activations_.targets(tokens), loss_scale);
  ops_.zero(g.d_x);
  ops_.rmsnorm_backward(g.d_x, weights_.final_norm.gradient, g.d_normed, activations_.final_x(tokens),
                        activations_.final_reciprocal(tokens), weights_.final_norm.value);
  for (int64_t layer = config_.num_layers - 1; layer >= 0; --layer)
    block_backward(ops_, pass, weights_.layers[static_cast<size_t>(layer)], activations_.block(layer, tokens),
                   g, activations_.delta(tokens), activations_.recompute(), layer > 0 || train_embedding_);
  if (train_embedding_) ops_.embedding_backward(weights_.embedding.gradient, g.d_x, activations_.ids(tokens));

  const auto losses = download_numbers<double>(ops_, nll);
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

void Llama::zero_gradients() {
  for (const Parameter& parameter : weights_.parameters)
    if (parameter.trained()) ops_.zero(parameter.weight.gradient);
}

std::vector<float> Llama::logits(const Batch& batch, const AttentionPattern& pattern, int64_t first,
                                 int64_t rows) {
  const PassContext pass = start(batch, pattern);
  forward(batch, pass);
  Arena scratch("logits");
  Tensor logits;
  scratch.take(&logits, ops_.activation_dtype(), {rows, config_.vocab_size});
  scratch.allocate(ops_);
  ops_.linear_forward(logits, {}, activations_.final_normed(batch.tokens()).row_slice(first, rows),
                      {weights_.head.value, {}});
  return download_numbers<float>(ops_, logits);
}

}  // namespace sinklora
