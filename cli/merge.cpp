#include "model/merge.h"

#include <fmt/format.h>

#include <memory>

#include "base/format.h"
#include "cli/option_checks.h"
#include "cli/verbs.h"

namespace sinklora {

void add_merge(CLI::App& app) {
  struct Options {
    std::string model, adapter, out, dtype = "keep", embed_rows = "refuse", rope;
    int64_t max_shard = kDefaultShardBytes;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("merge", "put an adapter into its base and write a Hugging Face directory");
  verb->add_option("--model", options->model, "base: a Hugging Face LLaMA directory")
      ->required()
      ->type_name("DIR")
      ->group("Input");
  accept_run(verb->add_option("--adapter", options->adapter, "PEFT LoRA adapter, checkpoint or run"))
      ->required()
      ->group("Input");
  add_choice(*verb, "--embed-rows", options->embed_rows,
             "adapter embeddings with more rows than the base: refuse, drop the extra ones, or keep them all",
             {"refuse", "drop", "keep"})
      ->group("Input");
  verb->add_option("--rope-scaling", options->rope,
                   "RoPE scaling of the result: none, linear:F, dynamic:F, yarn:F, llama3:F; default: what "
                   "the adapter was trained with")
      ->type_name("SCALING")
      ->group("Input");
  verb->add_option("--out", options->out, "directory to write; must not exist")
      ->required()
      ->type_name("DIR")
      ->group("Output");
  add_choice(*verb, "--dtype", options->dtype, "type of the weights; keep: as in the base",
             {"keep", "bf16", "fp16", "fp32"})
      ->group("Output");
  add_count(*verb, "--max-shard-size", options->max_shard, "bytes of a weights file", 1)->group("Output");
  verb->footer(
      "Examples:\n"
      "  sinklora merge --model llama-7b --adapter run --out llama-7b-16k\n"
      "  sinklora merge --model llama-7b --adapter run --out merged --dtype fp16 "
      "--max-shard-size 2G\n"
      "  sinklora merge --model llama-7b --adapter longlora --out merged --embed-rows keep --rope-scaling "
      "linear:8\n"
      "Exit codes: 0 done, 2 wrong command line, 3 broken input.");
  verb->callback([options] {
    const ModelDirectory base(options->model);
    const Adapter adapter = read_adapter(options->adapter, base.config(),
                                         options->embed_rows == "refuse" ? "" : options->embed_rows);
    MergeOptions merge;
    merge.max_shard_bytes = options->max_shard;
    if (options->dtype != "keep") merge.dtype = parse_weights_dtype(options->dtype);
    const AdapterRunInfo run = read_run_info(options->adapter);
    merge.context = run.context;
    note_other_base(options->adapter, options->model);
    merge.rope =
        options->rope.empty() ? run.rope : parse_rope_scaling(options->rope, base.config(), run.context);
    const MergeReport report = merge_adapter(base, adapter, options->out, merge);
    fmt::print("{}: {} tensors, {} parameters; {} tensors changed ({} elements); rope scaling {}\n",
               options->out, report.tensors, format_count(static_cast<double>(report.parameters)),
               report.changed_tensors, report.changed_elements,
               describe(merge.rope.value_or(base.config().rope)));
    if (base.config().tied_embeddings && !report.tied)
      fmt::print(
          "the embedding was trained apart from the head: lm_head.weight is written and tie_word_embeddings "
          "set to false\n");
    if (report.changed_tensors == 0)
      fmt::print(stderr,
                 "warning: the result equals the base: the adapter is empty, its lora_B are all zero, or its "
                 "changes "
                 "are smaller than the type of the weights can hold\n");
  });
}

}  // namespace sinklora
