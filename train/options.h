// Everything that a training run depends on; defaults are LongLoRA's.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model/attention_options.h"
#include "model/llama.h"

namespace sinklora {

struct TrainOptions {
  // Model
  std::filesystem::path model;  // Hugging Face directory; with `init` "random" only its config.json is read
  std::string init = "checkpoint";  // checkpoint, random
  std::string rope_scaling = "auto";
  AttentionOptions attention;
  int64_t context = 8192;
  // Data
  std::filesystem::path data, eval_data;
  bool separate_documents = true;
  bool force_tokenizer = false;
  // What is trained
  std::string trainable = "lora+";  // lora, lora+, full
  int64_t lora_rank = 8;
  double lora_alpha = 16;
  std::vector<std::string> lora_targets{"q", "k", "v", "o"};
  // Optimizer
  double learning_rate = 2e-5, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0, grad_clip = 1.0;
  int64_t warmup = 20;
  std::string schedule = "constant";  // constant, cosine, linear
  int64_t batch = 1, accumulate = 1;
  int64_t steps = 0;  // 0: from `epochs`
  double epochs = 1.0;
  int64_t seed = 0;
  bool shuffle = true;
  std::string on_nonfinite = "stop";  // stop, skip
  // Machine
  std::string device = "cpu", precision = "fp32", recompute = "auto";
  bool offload = false;       // block inputs wait in host memory; `auto` also does it when it must
  double memory_limit = 0.0;  // GiB of the device that the run may take; 0: what is free
  // Ranks
  std::string gpus = "1";     // processes to start on this machine, or "all"
  bool shard_base = false;    // ranks share the frozen matrices of the layers (model/sharded_base.h)
  double rank_timeout = 600;  // seconds that ranks wait for one another
  int64_t check_every = 50;   // steps between comparisons of the trained weights; 0: never
  int device_index = 0;       // the GPU of this process, set by train_on_ranks()
  int processes_here = 1;     // that share this machine's memory, likewise
  int64_t free_memory = 0;    // bytes of the device before this process took any, likewise
  // Output
  std::filesystem::path out;
  bool deterministic = true;    // always is
  std::string resume = "auto";  // auto, never, or a checkpoint directory
  bool quiet = false;           // nothing on the console but errors
  int64_t save_every = 500, keep_last = 3, eval_every = 0, log_every = 1;
  std::string resolved_config;  // TOML of all options, written to OUT/run.toml
};

// What the options mean for this model.
struct TrainSetup {
  LlamaConfig config;  // with the RoPE scaling in force
  ModelOptions model;
  AttentionPattern pattern;
  int64_t max_tokens = 0;      // of a micro-batch
  int64_t most_documents = 0;  // of a sample; 0: not known
};
TrainSetup resolve(const TrainOptions& options);
// Its part for the model; `ranks` share the frozen matrices where options.shard_base says so.
ModelOptions model_options(const TrainOptions& options, const LlamaConfig& config, int ranks);

// The options that decide the numbers, as text: two runs with equal ones (and equal data) compute the same,
// but for the order of sums where a step's samples are split otherwise. Compared field by field on resume and
// between ranks. `base`: weights_identity() of the model.
Json fingerprint(const TrainOptions& options, const std::string& base, const std::string& data_hash,
                 int world_size);

}  // namespace sinklora
