#include "train/options.h"

#include "base/error.h"
#include "kernels/backend.h"

namespace sinklora {

TrainSetup resolve(const TrainOptions& options) {
  TrainSetup setup;
  setup.config = read_config(options.model);
  setup.config.rope = parse_rope_scaling(options.rope_scaling, setup.config, options.context);
  setup.pattern = make_pattern(options.attention, options.context, setup.config.num_heads);
  setup.max_tokens = options.batch * options.context;
  setup.model.frozen_dtype = frozen_dtype(options.precision);
  if (options.trainable == "full") {
    setup.model.train_all = true;
  } else if (options.trainable == "lora" || options.trainable == "lora+") {
    setup.model.adapters =
        uniform_adapters(setup.config, options.lora_targets, options.lora_rank, options.lora_alpha);
    setup.model.train_adapters = true;
    setup.model.train_embeddings = setup.model.train_norms = options.trainable == "lora+";
  } else {
    fail_usage("--trainable {}: choose lora, lora+ or full", options.trainable);
  }
  if (options.init == "random" && options.trainable != "full")
    fail_usage("--init random trains every weight: add --trainable full (found {})", options.trainable);
  if (options.shard_base && options.trainable == "full")
    fail_usage("--shard-base splits frozen weights, and --trainable full leaves none frozen: leave one away");
  if (options.shard_base)  // as far as --gpus tells: a run knows its ranks
    setup.model.base_ranks = options.gpus == "all" ? device_count(options.device) : std::stoi(options.gpus);
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
