// A LLaMA on one backend: weights, activations, and the passes over a batch.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "data/loader.h"
#include "model/activations.h"
#include "model/block.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace sinklora {

struct PassOptions {
  int64_t max_tokens = 0;     // of a batch
  int64_t max_sequences = 1;  // of a batch
  // For which scratch memory is laid out, more make it grow; 0: documents of 1024 tokens.
  int64_t usual_sequences = 0;
  int64_t max_context = 0;  // of one sequence: length of the RoPE tables
  bool training = false;
  Recompute recompute = Recompute::none();
  AttentionPattern pattern{};   // of training, for which scratch memory is laid out
  int64_t mlp_tile = kMlpTile;  // tokens that the MLP takes at a time: decides the order of sums
};

// Hears, as a backward goes down the layers, from which byte on Weights::gradients are complete.
using GradientsReady = std::function<void(int64_t first_byte)>;

// The next tokens of the sequence that a cache remembers.
struct Continuation {
  std::span<const int32_t> ids;
  KvCache* cache = nullptr;
};

class Llama {
 public:
  // Lays out all memory and allocates nothing; `config.rope` is the scaling in force.
  Llama(Ops& ops, const LlamaConfig& config, const ModelOptions& model, const PassOptions& pass);

  // What allocate() will take: these arenas, and the backend's scratch memory.
  std::vector<const Arena*> arenas() const;
  int64_t scratch_bytes() const { return ops_.scratch_bytes(shape_); }
  void allocate();

  const LlamaConfig& config() const { return config_; }
  Ops& ops() { return ops_; }
  Weights& weights() { return weights_; }

  // Negative log-likelihood in nats of every target, 0 where it is not scored.
  std::vector<double> nll(const Batch& batch, const AttentionPattern& pattern);
  // Adds the gradients of loss_scale * (sum of nll) and returns the sum of nll, unscaled.
  double accumulate_gradients(const Batch& batch, const AttentionPattern& pattern, double loss_scale,
                              const GradientsReady& ready = {});
  // The calls to other ranks that nll() or accumulate_gradients() makes where the base is shared, without the
  // work: for a rank that has nothing to compute while others have.
  void accompany_nll();
  void accompany_gradients(const GradientsReady& ready = {});
  void zero_gradients();
  // Logits [rows, V] after tokens [first, first + rows) of the batch.
  std::vector<float> logits(const Batch& batch, const AttentionPattern& pattern, int64_t first, int64_t rows);
  // Adds tokens to the sequence that each cache remembers (one token to each is decoding, which has
  // operations of its own) and returns the logits [caches, V] after the last one of each. Like all passes
  // with full attention; what was evicted is not seen. At most max_tokens together and cache.chunk() each;
  // all caches have positions of one kind.
  std::vector<float> extend(std::span<const Continuation> batch);
  // The same without logits: for all chunks of a prompt but the last.
  void absorb(std::span<const Continuation> batch) { forward(batch); }
  // The same, and returns what nll() does: of one target for each added token, all sequences' behind one
  // another.
  std::vector<double> extend_nll(std::span<const Continuation> batch, std::span<const int32_t> targets);
  int64_t max_tokens() const { return options_.max_tokens; }
  int64_t max_context() const { return options_.max_context; }

 private:
  void enter_layer(int64_t layer, int64_t next);
  std::vector<float> head_logits(const Tensor& normed);
  PassContext start(const Batch& batch, const AttentionPattern& pattern);
  void forward(const Batch& batch, const PassContext& pass);  // up to the final norm
  void backward(const Batch& batch, const PassContext& pass, const BackwardScratch& g,  // below it
                const GradientsReady& ready);
  PassContext start(std::span<const Continuation> batch);
  Tensor forward(std::span<const Continuation> batch);  // final norm's output, [tokens, hidden]
  void extend_layers(std::span<const Continuation> batch, const PassContext& pass);
  // A key for Ops::repeat: the one before, if these caches are those of the call before and as large.
  uint64_t repetition(std::span<const Continuation> batch);
  void final_norm(int64_t tokens, const Tensor& previous, const Tensor& previous_delta);

  Ops& ops_;
  LlamaConfig config_;
  PassOptions options_;
  Weights weights_;
  PassShape shape_;
  Activations activations_;
  Arena tables_{"RoPE tables"};
  Tensor cosines_, sines_;
  std::unique_ptr<Arena> logits_memory_;  // grows to the most rows asked for
  Tensor logits_;
  std::vector<std::pair<uint64_t, int64_t>> repeated_;  // caches and their bounds
  uint64_t repetition_ = 0;
  bool train_embedding_;
};

}  // namespace sinklora
