#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "base/format.h"
#include "cli/option_checks.h"
#include "cli/verbs.h"
#include "model/adapter_card.h"
#include "model/merge.h"

namespace sinklora {
namespace {

struct ExportOptions {
  std::string model, adapter, out, dtype = "keep";
  int64_t max_shard = kDefaultShardBytes;
  bool adapter_only = false;
};

// The base of the adapter; where it is not to be found, one that has none of the adapter's settings.
LlamaConfig base_config(const ExportOptions& options, const std::string& named) {
  if (!options.model.empty()) return read_config(options.model);
  std::error_code error;
  if (!named.empty() && std::filesystem::exists(std::filesystem::path(named) / "config.json", error))
    return read_config(named);
  LlamaConfig unknown;
  unknown.raw = config_json(unknown);
  unknown.max_positions = 0;
  return unknown;
}

void export_adapter(const ExportOptions& options) {
  const AdapterLayout layout = copy_adapter(options.adapter, options.out);
  fmt::print("{}: adapter of {} LoRA modules and {} whole tensors\n", options.out, layout.modules.size(),
             layout.replaced.size());
  if (const AdapterRunInfo run = read_run_info(options.adapter); run.rope) {
    LlamaConfig trained = base_config(options, layout.settings.base_model);
    trained.rope = *run.rope;
    if (const std::string remedy = rope_remedy(trained); !remedy.empty()) fmt::print("{}\n", remedy);
  }
  if (!layout.replaced.empty())
    fmt::print(
        "PEFT loads its weights as they are. vLLM refuses adapters with modules_to_save, and llama.cpp's "
        "converter refuses a trained\n"
        "embedding and applies no norms: for these, merge the adapter into its base (sinklora merge).\n");
}

void export_model(const ExportOptions& options) {
  MergeOptions merge;
  merge.max_shard_bytes = options.max_shard;
  if (options.dtype != "keep") merge.dtype = parse_weights_dtype(options.dtype);
  const MergeReport report = merge_adapter(ModelDirectory(options.model), Adapter{}, options.out, merge);
  fmt::print("{}: {} tensors, {} parameters\n", options.out, report.tensors,
             format_count(static_cast<double>(report.parameters)));
}

}  // namespace

void add_export(CLI::App& app) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* verb = app.add_subcommand(
      "export", "write a model with another dtype or shard size, or an adapter for others");
  accept_run(verb->add_option("--model", options->model,
                              "a Hugging Face LLaMA directory, or a run that trained every weight"))
      ->group("Input");
  accept_run(verb->add_option("--adapter", options->adapter, "PEFT LoRA adapter, checkpoint or run"))
      ->group("Input");
  verb->add_flag("--adapter-only", options->adapter_only,
                 "write the adapter's own files and say who cannot use them")
      ->group("Input");
  verb->add_option("--out", options->out, "directory to write; must not exist")
      ->required()
      ->type_name("DIR")
      ->group("Output");
  add_choice(*verb, "--dtype", options->dtype, "type of the weights; keep: as they are",
             {"keep", "bf16", "fp16", "fp32"})
      ->group("Output");
  add_count(*verb, "--max-shard-size", options->max_shard, "bytes of a weights file", 1)->group("Output");
  verb->footer(
      "Examples:\n"
      "  sinklora export --model llama-7b --out llama-7b-fp16 --dtype fp16\n"
      "  sinklora export --model merged --out merged-2g --max-shard-size 2G\n"
      "  sinklora export --adapter-only --adapter run --out my-adapter\n"
      "Exit codes: 0 done, 2 wrong command line, 3 broken input.");
  verb->callback([verb, options] {
    if (options->adapter_only && (verb->count("--dtype") > 0 || verb->count("--max-shard-size") > 0))
      fail_usage(
          "--adapter-only copies the adapter's files as they are: leave --dtype and --max-shard-size away");
    if (options->adapter_only && options->adapter.empty()) fail_usage("--adapter-only needs --adapter DIR");
    if (!options->adapter_only && !options->adapter.empty())
      fail_usage("--adapter alone is not exported into a model; use sinklora merge, or add --adapter-only");
    if (!options->adapter_only && options->model.empty())
      fail_usage("one of --model DIR and --adapter-only is needed");
    options->adapter_only ? export_adapter(*options) : export_model(*options);
  });
}

}  // namespace sinklora
