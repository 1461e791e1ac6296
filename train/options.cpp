#include "train/options.h"

#include "base/error.h"
#include "kernels/backend.h"

namespace sinklora {

ModelOptions model_options(const TrainOptions& options, const LlamaConfig& config, int ranks) {
  ModelOptions model;
  model.frozen_dtype = frozen_dtype(options.precision);
  if (options.trainable == "full") {
    model.train_all = true;
  } else if (options.trainable == "lora" || options.trainable == "lora+") {
    model.adapters = uniform_adapters(config, options.lora_targets, options.lora_rank, options.lora_alpha);
    model.train_adapters = true;
    model.train_embeddings = model.train_norms = options.trainable == "lora+";
  } else {
    fail_usage("--trainable {}: choose lora, lora+ or full", options.trainable);
  }
  if (options.shard_base && model.train_all)
    fail_usage("--shard-base splits frozen weights, and --trainable full leaves none frozen: leave one away");
  model.base_ranks = options.shard_base ? ranks : 1;
  return model;
}

TrainSetup resolve(const TrainOptions& options) {
  TrainSetup setup;
  setup.config = read_config(options.model);
  setup.config.rope = parse_rope_scaling(options.rope_scaling, setup.config, options.context);
  setup.pattern = make_pattern(options.attention, options.context, setup.config.num_heads);
  setup.max_tokens = options.batch * options.context;
  // As far as --gpus tells: a run knows its ranks.
  const int ranks = !options.shard_base     ? 1
                    : options.gpus == "all" ? device_count(options.device)
                                            : std::stoi(options.gpus);
  setup.model = model_options(options, setup.config, ranks);
  if (options.init == "random" && options.trainable != "full")
    fail_usage("--init random trains every weight: add --trainable full (found {})", options.trainable);
  return setup;
}

Json fingerprint(const TrainOptions& o, const std::string& base, const std::string& data_hash,
                 int world_size) {
  return {{"model", std::filesystem::weakly_canonical(o.model).string()},
          {"base weights", base},
          {"init", o.init},
          {"rope_scaling", o.rope_scaling},
          {"attention", o.attention.kind},
          {"group_ratio", o.attention.group_ratio},
          {"shifted_heads", o.attention.shifted_heads},
          {"sinks", o.attention.sinks},
          {"context", o.context},
          {"data", data_hash},
          {"separate_documents", o.separate_documents},
          {"trainable", o.trainable},
          {"lora_rank", o.lora_rank},
          {"lora_alpha", o.lora_alpha},
          {"lora_targets", o.lora_targets},
          {"learning_rate", o.learning_rate},
          {"beta1", o.beta1},
          {"beta2", o.beta2},
          {"epsilon", o.epsilon},
          {"weight_decay", o.weight_decay},
          {"grad_clip", o.grad_clip},
          {"warmup", o.warmup},
          {"schedule", o.schedule},
          {"batch x accumulate x ranks", o.batch * o.accumulate * world_size},
          {"seed", o.seed},
          {"shuffle", o.shuffle},
          {"precision", o.precision}};
}

}  // namespace sinklora
