#include "cli/train_options.h"

#include <fmt/format.h>

#include "cli/attention_options.h"
#include "cli/option_checks.h"

namespace sinklora {
namespace {

void add_model_options(CLI::App& verb, TrainOptions& o) {
  auto* group = verb.add_option_group("Model");
  accept_run(group->add_option("--model", o.model,
                               "Hugging Face LLaMA directory, or a run that trained every weight"))
      ->required();
  add_choice(*group, "--init", o.init, "weights from the checkpoint, or new random ones for its config.json",
             {"checkpoint", "random"});
  group
      ->add_option(
          "--rope-scaling", o.rope_scaling,
          "none, auto (position interpolation up to --context), linear:F, dynamic:F, yarn:F or llama3:F")
      ->capture_default_str()
      ->type_name("WORD");
  add_attention_options(*group, o.attention, "pattern while training; evaluation is always full");
  add_count(*group, "--context", o.context, "tokens of a training sample", 2, int64_t{1} << 30);
}

void add_data_options(CLI::App& verb, TrainOptions& o) {
  auto* group = verb.add_option_group("Data");
  group->add_option("--data", o.data, "shard directory of `tokenize`, one .h5, or a uint16 stream (.bin)")
      ->required()
      ->type_name("PATH");
  group
      ->add_option("--eval-data", o.eval_data,
                   "held-out data, evaluated every --eval-every steps and at the end")
      ->type_name("PATH");
  add_turn_off(*group, "--join-documents", o.separate_documents,
               "let packed documents see each other, as LongLoRA does");
  group->add_flag("--force-tokenizer", o.force_tokenizer,
                  "accept shards made with another tokenizer than the model's");
  add_turn_off(*group, "--no-shuffle", o.shuffle, "take samples in file order");
  add_count(*group, "--batch", o.batch, "samples of a forward pass", 1, 1 << 20);
  add_count(*group, "--accumulate", o.accumulate, "forward passes of a step", 1, 1 << 20);
  auto* steps = add_count(*group, "--steps", o.steps, "updates to make; 0: as --epochs says");
  add_number(*group, "--epochs", o.epochs, "passes over the data", 1e-6, 1e6)->excludes(steps);
  add_count(*group, "--seed", o.seed, "of initial values and of the order of samples");
}

void add_lora_options(CLI::App& verb, TrainOptions& o) {
  auto* group = verb.add_option_group("LoRA");
  add_choice(*group, "--trainable", o.trainable,
             "lora, lora+ (with embeddings and norms, as LongLoRA) or every weight",
             {"lora", "lora+", "full"});
  add_count(*group, "--lora-rank", o.lora_rank, "rank of the adapters", 1, 4096);
  add_number(*group, "--lora-alpha", o.lora_alpha, "their scale is alpha / rank", 1e-6, 1e6);
  add_choices(*group, "--lora-targets", o.lora_targets, "any of q,k,v,o,gate,up,down",
              {"q", "k", "v", "o", "gate", "up", "down"});
}

void add_optimizer_options(CLI::App& verb, TrainOptions& o) {
  auto* group = verb.add_option_group("Optimizer (AdamW)");
  add_number(*group, "--lr", o.learning_rate, "peak learning rate", 0, 1e3);
  add_number(*group, "--beta1", o.beta1, "", 0, 0.999999);
  add_number(*group, "--beta2", o.beta2, "", 0, 0.999999999);
  add_number(*group, "--epsilon", o.epsilon, "", 1e-30, 1);
  add_number(*group, "--weight-decay", o.weight_decay, "decoupled; norms are left out", 0, 1e3);
  add_number(*group, "--grad-clip", o.grad_clip, "greatest global gradient norm; 0: no clipping", 0, 1e9);
  add_count(*group, "--warmup", o.warmup, "steps of linear warm-up");
  add_choice(*group, "--schedule", o.schedule, "after the warm-up", {"constant", "cosine", "linear"});
  add_choice(*group, "--on-nonfinite", o.on_nonfinite, "a loss or gradient that is NaN or Inf",
             {"stop", "skip"});
}

void add_machine_options(CLI::App& verb, TrainOptions& o) {
  auto* group = verb.add_option_group("Machine");
  add_device(*group, o.device, o.precision);
  add_choice(*group, "--recompute", o.recompute,
             "what the backward computes again instead of keeping; no choice changes a bit of the result",
             {"auto", "none", "cheap", "block"});
  group->add_flag(
      "--offload", o.offload,
      "block inputs wait in page-locked host memory for their backward; --recompute auto does so by "
      "itself when it must");
  add_number(*group, "--memory-limit", o.memory_limit, "GiB of the device to take at most; 0: what is free",
             0, 1e6);
  add_gpus(*group, o.gpus,
           "GPUs of this machine to use: starts a process for each, which takes its part of every step "
           "(a step then has batch x accumulate x N samples). With --device cpu: N processes that "
           "share the cores, for tests. Under torchrun, mpirun or srun leave it away");
  group->add_flag(
      "--shard-base", o.shard_base,
      "each rank keeps a share of the frozen matrices and gathers a layer ahead of its use; changes "
      "no bit of the result");
  add_number(*group, "--rank-timeout", o.rank_timeout,
             "seconds that ranks wait for one another; longer than loading or saving takes", 0.1, 1e6);
  add_count(*group, "--check-every", o.check_every,
            "steps between comparisons of the trained weights of all ranks; 0: never");
  group->add_flag("--deterministic", o.deterministic,
                  "equal runs give equal bits: always on, accepted for scripts");
}

}  // namespace

void add_train_options(CLI::App& verb, TrainOptions& options) {
  add_model_options(verb, options);
  add_data_options(verb, options);
  add_lora_options(verb, options);
  add_optimizer_options(verb, options);
  add_machine_options(verb, options);
  auto* group = verb.add_option_group("Output");
  group
      ->add_option(
          "--out", options.out,
          "run directory: checkpoints, metrics.jsonl, eval.jsonl, train.log, loss.svg, run.toml, env.json")
      ->required()
      ->type_name("DIR");
  accept_run(
      group->add_option("--resume", options.resume,
                        "auto (newest checkpoint in --out that verifies), never, or a checkpoint or run"),
      {"auto", "never"})
      ->capture_default_str()
      ->type_name("WORD|DIR");
  add_count(*group, "--save-every", options.save_every, "steps between checkpoints; 0: only at the end");
  add_count(*group, "--keep-last", options.keep_last, "checkpoints to keep; 0: all");
  add_count(*group, "--eval-every", options.eval_every,
            "steps between evaluations on --eval-data; 0: only at the end");
  group->add_flag("--quiet", options.quiet, "print errors alone");
  add_count(*group, "--log-every", options.log_every,
            "steps between console lines; metrics.jsonl has every step", 1);
}

}  // namespace sinklora
