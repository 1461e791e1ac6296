#include <fmt/format.h>

#include <memory>

#include "cli/option_checks.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "train/bench.h"

namespace sinklora {

void add_bench(CLI::App& app) {
  auto* bench = app.add_subcommand("bench", "how fast it is: bench step");
  bench->require_subcommand(1);
  auto* verb = bench->add_subcommand("step", "one training step of a model shape with random weights");
  const auto options = std::make_shared<StepBench>();
  const auto json = std::make_shared<std::string>();
  add_choice(*verb, "--shape", options->shape, "", {"llama2-7b", "llama3-8b", "smollm2-135m"});
  add_count(*verb, "--context", options->context, "tokens of a sample", 2, int64_t{1} << 24);
  add_count(*verb, "--batch", options->batch, "samples of a step", 1, 1 << 20);
  add_choice(*verb, "--attention", options->attention.kind, "", {"full", "fixed", "s2", "s2-wrap", "sf"});
  add_number(*verb, "--group-ratio", options->attention.group_ratio, "", 1e-6, 1);
  add_number(*verb, "--shifted-heads", options->attention.shifted_heads, "", 0, 1);
  add_count(*verb, "--sinks", options->attention.sinks, "");
  add_choice(*verb, "--trainable", options->trainable, "", {"lora", "lora+", "full"});
  add_choice(*verb, "--recompute", options->recompute, "", {"auto", "none", "cheap", "block"});
  verb->add_flag("--offload", options->offload, "block inputs wait in host memory");
  add_number(*verb, "--memory-limit", options->memory_limit, "GiB to fit into, for --recompute auto; 0: all",
             0, 1e6);
  add_choice(*verb, "--device", options->device, "", {"cpu", "cuda"});
  add_choice(*verb, "--precision", options->precision, "", {"bf16", "fp32"});
  add_count(*verb, "--warmup", options->warmup, "steps before timing", 0, 1000);
  add_count(*verb, "--steps", options->steps, "timed steps; the median is reported", 1, 1000);
  verb->add_option("--json", *json, "write the result as JSON to FILE, - for standard output")
      ->type_name("FILE");
  verb->footer(
      "Examples:\n"
      "  sinklora bench step --shape llama2-7b --context 8192 --attention sf\n"
      "  sinklora bench step --shape smollm2-135m --context 512 --device cpu --precision fp32 --json -");
  verb->callback([options, json] {
    const Json result = bench_step(*options);
    if (!write_result(*json, result))
      fmt::print("{} at {} tokens, {}: {:.1f} ms a step, {:.0f} tokens/s, {:.1f} GiB\n", options->shape,
                 options->context, options->attention.kind, result.at("step_ms").get<double>(),
                 result.at("tokens_per_s").get<double>(), result.at("peak_mem_gib").get<double>());
  });
}

}  // namespace sinklora
