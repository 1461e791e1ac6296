#include "model/llama.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "model/rope.h"

namespace sinklora {

namespace {

constexpr int64_t kUsualDocument = 1024;  // tokens

PassShape shape_of(const LlamaConfig& c, const ModelOptions& model, const Weights& weights,
                   const PassOptions& pass) {
  PassShape shape{.tokens = pass.max_tokens,
                  .sequences = std::min(pass.max_sequences, pass.usual_sequences > 0
                                                                ? pass.usual_sequences
                                                                : pass.max_tokens / kUsualDocument + 8),
                  .hidden = c.hidden_size,
                  .vocabulary = c.vocab_size,
                  .widest = std::max({c.qkv_width(), 2 * c.intermediate_size, c.hidden_size}),
                  .num_heads = c.num_heads,
                  .num_kv_heads = c.num_kv_heads,
                  .head_dim = c.head_dim,
                  .largest_weight = std::max(c.vocab_size, 2 * c.intermediate_size) * c.hidden_size,
                  .weight_dtype = model.frozen_dtype,
                  .pattern = pass.pattern,
                  .training = pass.training};
  for (const LayerWeights& layer : weights.layers)
    for (const Projection* linear : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down})
      shape.rank = std::max(shape.rank, linear->total_rank);
  return shape;
}

}  // namespace

Llama::Llama(Ops& ops, const LlamaConfig& config, const ModelOptions& model, const PassOptions& pass)
    : ops_(ops),
      config_(config),
      options_(pass),
      weights_(config, model, ops.activation_dtype(), ops.statistic_dtype()),
      shape_(shape_of(config, model, weights_, pass)),
      activations_(config, weights_, pass.max_tokens, pass.max_sequences, pass.training, pass.recompute,
                   pass.mlp_tile, ops.activation_dtype(), ops.statistic_dtype()),
      train_embedding_(model.train_embeddings || model.train_all) {
  tables_.take(&cosines_, ops.statistic_dtype(), {pass.max_context, config.head_dim / 2});
  tables_.take(&sines_, ops.statistic_dtype(), {pass.max_context, config.head_dim / 2});
}

std::vector<const Arena*> Llama::arenas() const {
  return {&weights_.frozen,
          &weights_.base.shares,
          &weights_.base.buffers,
          &weights_.trained,
          &weights_.rounded,
          &weights_.gradients,
          &weights_.first_moments,
          &weights_.second_moments,
          &activations_.arena,
          &activations_.host,
          &tables_};
}

void Llama::allocate() {
  weights_.allocate(ops_);
  activations_.arena.allocate(ops_);
  activations_.host.allocate(ops_);
  ops_.reserve_scratch(shape_);
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
  return {config_, pattern, view, cosines_, sines_, options_.mlp_tile};
}

void Llama::forward(const Batch& batch, const PassContext& pass) {
  const int64_t tokens = batch.tokens();
  Tensor previous = activations_.block(0, tokens).x,
         previous_delta;  // the first block's input needs no addition
  ops_.embedding_forward(previous, weights_.embedding.value, activations_.ids(tokens));
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const BlockActivations a = activations_.block(layer, tokens);
    const int slot = Activations::slot(layer);
    if (activations_.offloads(layer - Activations::kSlots)) ops_.finish_transfer(slot);
    enter_layer(layer, layer + 1);
    block_forward(ops_, pass, weights_.layers[static_cast<size_t>(layer)], a, previous, previous_delta);
    if (activations_.offloads(layer)) ops_.start_offload(activations_.host_x(layer), a.x, slot);
    previous = a.x_mid;
    previous_delta = a.delta;
  }
  final_norm(tokens, previous, previous_delta);
}

void Llama::final_norm(int64_t tokens, const Tensor& previous, const Tensor& previous_delta) {
  ops_.residual_rmsnorm_forward(activations_.final_x(tokens), activations_.final_normed(tokens),
                                activations_.final_reciprocal(tokens), previous, previous_delta,
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

double Llama::accumulate_gradients(const Batch& batch, const AttentionPattern& pattern, double loss_scale,
                                   const GradientsReady& ready) {
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
  backward(batch, pass, g, ready);
  const auto losses = download_numbers<double>(ops_, nll);
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

void Llama::backward(const Batch& batch, const PassContext& pass, const BackwardScratch& g,
                     const GradientsReady& ready) {
  const int64_t tokens = batch.tokens();
  for (int64_t layer = config_.num_layers - 1; layer >= 0; --layer) {
    if (activations_.offloads(layer)) ops_.finish_transfer(Activations::slot(layer));
    // The next layer's input comes back while this one computes, into the buffer of the layer before.
    if (activations_.offloads(layer - 1))
      ops_.start_fetch(activations_.block(layer - 1, tokens).x, activations_.host_x(layer - 1),
                       Activations::slot(layer - 1));
    enter_layer(layer, layer - 1);
    block_backward(ops_, pass, weights_.layers[static_cast<size_t>(layer)], activations_.block(layer, tokens),
                   g, layer > 0 || train_embedding_);
    if (ready) ready(weights_.layers[static_cast<size_t>(layer)].gradients_begin);
  }
  if (train_embedding_) ops_.embedding_backward(weights_.embedding.gradient, g.d_x, activations_.ids(tokens));
}

void Llama::enter_layer(int64_t layer, int64_t next) {
  weights_.base.need(layer);
  weights_.base.prefetch(next);
}

void Llama::accompany_nll() {
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) enter_layer(layer, layer + 1);
}

void Llama::accompany_gradients(const GradientsReady& ready) {
  accompany_nll();
  for (int64_t layer = config_.num_layers - 1; layer >= 0; --layer) {
    enter_layer(layer, layer - 1);
    if (ready) ready(weights_.layers[static_cast<size_t>(layer)].gradients_begin);
  }
}

void Llama::zero_gradients() {
  if (const Tensor all = weights_.gradients.whole()) ops_.zero(all);
}

std::vector<float> Llama::logits(const Batch& batch, const AttentionPattern& pattern, int64_t first,
                                 int64_t rows) {
  const PassContext pass = start(batch, pattern);
  forward(batch, pass);
  return head_logits(activations_.final_normed(batch.tokens()).row_slice(first, rows));
}

std::vector<float> Llama::head_logits(const Tensor& normed) {
  if (!logits_ || logits_.rows() < normed.rows()) {
    logits_ = {};
    logits_memory_ = std::make_unique<Arena>("logits");
    logits_memory_->take(&logits_, ops_.activation_dtype(), {normed.rows(), config_.vocab_size});
    logits_memory_->allocate(ops_);
  }
  const Tensor logits = logits_.row_slice(0, normed.rows());
  ops_.linear_forward(logits, {}, normed, {weights_.head.value, {}});
  return download_numbers<float>(ops_, logits);
}

PassContext Llama::start(std::span<const Continuation> batch) {
  std::vector<int32_t> ids, positions, counts;
  for (const auto& [added, cache] : batch) {
    const auto tokens = static_cast<int64_t>(added.size());
    const int64_t first = cache->next_position();
    if (tokens < 1 || first + tokens > options_.max_context)
      fail_internal("{} tokens from position {}; the RoPE tables hold {}", tokens, first,
                    options_.max_context);
    cache->expect_to_hold(tokens);  // here as well: a recorded step is repeated without asking
    if (cache->policy().positions != batch.front().cache->policy().positions)
      fail_internal("a batch of caches, some with original positions and some with positions by index");
    for (int64_t i = 0; i < tokens; ++i) {
      ids.push_back(added[static_cast<size_t>(i)]);
      positions.push_back(narrow<int32_t>(first + i, "position"));
    }
    counts.push_back(narrow<int32_t>(cache->count(), "tokens in a cache"));
    counts.push_back(narrow<int32_t>(cache->length(), "position"));
  }
  const auto tokens = static_cast<int64_t>(ids.size());
  if (tokens < 1 || tokens > activations_.max_tokens())
    fail_internal("{} tokens in one pass; memory was laid out for {}", tokens, activations_.max_tokens());
  ops_.upload(activations_.ids(tokens), ids.data());
  ops_.upload(activations_.positions(tokens), positions.data());
  PassContext pass{config_, {}, {{}, activations_.positions(tokens)}, cosines_, sines_, options_.mlp_tile};
  if (ids.size() != batch.size()) return pass;
  pass.counts = activations_.cache_counts(tokens);
  ops_.upload(pass.counts, counts.data());
  return pass;
}

uint64_t Llama::repetition(std::span<const Continuation> batch) {
  static std::atomic<uint64_t> last{0};
  std::vector<std::pair<uint64_t, int64_t>> caches;
  for (const Continuation& each : batch)
    caches.emplace_back(each.cache->identity(), each.cache->most_count());
  if (caches != repeated_ || repetition_ == 0) {
    repeated_ = std::move(caches);
    repetition_ = ++last;
  }
  return repetition_;
}

Tensor Llama::forward(std::span<const Continuation> batch) {
  const PassContext pass = start(batch);
  if (pass.counts)
    ops_.repeat(repetition(batch), [&] { extend_layers(batch, pass); });
  else
    extend_layers(batch, pass);
  for (const auto& [added, cache] : batch) cache->advance(static_cast<int64_t>(added.size()));
  return activations_.final_normed(pass.sequences.positions.rows());
}

void Llama::extend_layers(std::span<const Continuation> batch, const PassContext& pass) {
  const int64_t tokens = pass.sequences.positions.rows();
  Tensor previous = activations_.block(0, tokens).x, previous_delta;
  ops_.embedding_forward(previous, weights_.embedding.value, activations_.ids(tokens));
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const BlockActivations a = activations_.block(layer, tokens);
    std::vector<CacheStep> steps;
    int64_t row = 0;
    for (const auto& [added, cache] : batch) {
      steps.push_back(cache->step(layer, row, static_cast<int64_t>(added.size())));
      row += steps.back().rows;
    }
    block_extend(ops_, pass, weights_.layers[static_cast<size_t>(layer)], a, previous, previous_delta, steps);
    previous = a.x_mid;
    previous_delta = a.delta;
  }
  final_norm(tokens, previous, previous_delta);
}

std::vector<double> Llama::extend_nll(std::span<const Continuation> batch, std::span<const int32_t> targets) {
  const Tensor normed = forward(batch);
  const int64_t tokens = normed.rows();
  if (static_cast<int64_t>(targets.size()) != tokens)
    fail_internal("{} targets for {} tokens", targets.size(), tokens);
  const Tensor nll = activations_.nll(tokens);
  ops_.upload(activations_.targets(tokens), targets.data());
  ops_.head_cross_entropy(nll, {}, {}, normed, weights_.head.value, activations_.targets(tokens), 0.0);
  return download_numbers<double>(ops_, nll);
}

std::vector<float> Llama::extend(std::span<const Continuation> batch) {
  const Tensor normed = forward(batch);
  // The last rows of all sequences, one behind the other: none is overwritten before it has moved.
  int64_t row = 0, sequence = 0;
  for (const auto& [added, cache] : batch) {
    row += static_cast<int64_t>(added.size());
    if (row - 1 != sequence) ops_.copy(normed.row_slice(sequence, 1), normed.row_slice(row - 1, 1));
    ++sequence;
  }
  return head_logits(normed.row_slice(0, sequence));
}

}  // namespace sinklora
