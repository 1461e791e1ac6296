#include "train/ranks.h"

#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "cli/option_checks.h"
#include "cli/train_options.h"
#include "cli/verbs.h"
#include "kernels/backend.h"

namespace sinklora {
namespace {

void check(const CLI::App& verb, const TrainOptions& options) {
  if (options.eval_every > 0 && options.eval_data.empty())
    fail_usage("--eval-every {}: there is nothing to evaluate; add --eval-data, or --eval-every 0",
               options.eval_every);
  if (options.quiet) return;
  note_idle_pattern(verb, options.attention.kind);
  if (options.trainable == "full")
    note_idle(verb, {"--lora-rank", "--lora-alpha", "--lora-targets"}, "--trainable full");
}

}  // namespace

void add_train(CLI::App& app) {
  auto* verb = app.add_subcommand(
      "train", "fine-tune a LLaMA: LoRA, LoRA+ or every weight, with SF-Attn or its peers");
  const auto options = std::make_shared<TrainOptions>();
  add_train_options(*verb, *options);
  verb->footer(
      "Options come from the command line, else from --config FILE.toml (the same names without dashes in "
      "front).\n\n"
      "Examples:\n"
      "  sinklora train --model smollm2 --data shards --out run --context 2048 --steps 200\n"
      "  sinklora train --config run/run.toml --out run2 --attention s2\n"
      "  sinklora train --model tiny --init random --trainable full --attention full --data shards --out "
      "base \\\n"
      "      --context 256 --batch 16 --lr 2e-3 --steps 2000\n"
      "  sinklora train --model llama-2-7b --data shards --out run --device cuda --gpus all\n\n"
      "TERM, INT, USR1 and HUP save and stop (Ctrl-C again, a second later: stop at once); "
      "`touch OUT/save-now` saves without stopping.\n"
      "Exit codes: 0 done, 2 wrong option, 3 broken input, 4 does not fit, 5 non-finite loss, "
      "6 a rank failed, 75 saved on a signal; of --gpus, 128 + n (137) where signal n (9, KILL) ended a "
      "rank.");
  verb->callback([verb, options] {
    check(*verb, *options);
    // Of two options that exclude each other, the one that holds: else the file could not be given back.
    verb->get_option(options->steps > 0 ? "--epochs" : "--steps")->configurable(false);
    // As the default is written: a list that was given would be an array.
    CLI::Option* targets = verb->get_option("--lora-targets");
    targets->default_str(fmt::format("{}", fmt::join(options->lora_targets, ",")))->clear();
    options->resolved_config = verb->config_to_str(true, true);
    options->precision = precision_on(options->device, options->precision);
    if (const int code = train_on_ranks(*options); code != 0) throw CLI::RuntimeError(code);
  });
}

}  // namespace sinklora
