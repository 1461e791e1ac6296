#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "base/format.h"
#include "base/json.h"
#include "cli/output.h"
#include "cli/train_options.h"
#include "cli/verbs.h"
#include "kernels/backend.h"
#include "train/plan.h"

namespace sinklora {
namespace {

// What each tensor costs to keep and to compute again.
void print_choices(const TrainOptions& options) {
  const TrainSetup setup = resolve(options);
  const auto tokens = static_cast<double>(setup.max_tokens);
  fmt::print("\n{:<16}{:>14}{:>26}\n", "to keep", "a layer", "again, GFLOP or as much");
  for (const KeptChoice& choice : kept_choices(options, setup))
    fmt::print("{:<16}{:>14}{:>26.0f}\n", name_of(choice.group), format_bytes(choice.bytes * tokens),
               choice.operations * tokens * 1e-9);
}

void print_plan(const TrainOptions& options, const std::string& json_path) {
  const MemoryPlan plan = plan_memory(options);
  const int64_t longest = longest_context(options);
  const int64_t layers = read_config(options.model).num_layers;
  Json json{{"context", options.context}, {"batch", options.batch}};
  json["recompute"] = describe(plan.recompute, layers);
  for (const MemoryLine& line : plan.lines) json["bytes"][line.what] = line.bytes;
  json["total_bytes"] = plan.total;
  json["available_bytes"] = plan.available;
  json["fits"] = plan.fits();
  json["host_bytes"] = plan.host_total;
  json["longest_context"] = longest;
  if (!write_result(json_path, json)) {
    for (const MemoryLine& line : plan.lines)
      fmt::print("{:<28}{:>12}\n", line.what, format_bytes(static_cast<double>(line.bytes)));
    fmt::print("{:<28}{:>12}   {}\n", "sum", format_bytes(static_cast<double>(plan.total)),
               describe(plan.recompute, layers));
    fmt::print("{:<28}{:>12}\n", "available", format_bytes(static_cast<double>(plan.available)));
    if (plan.host_total > 0)
      fmt::print("{:<28}{:>12} of {}\n", "host memory", format_bytes(static_cast<double>(plan.host_total)),
                 format_bytes(static_cast<double>(plan.host_available)));
    print_choices(options);
    fmt::print("longest context that fits with these options: {}\n", longest);
  }
  if (!plan.fits()) throw CLI::RuntimeError(static_cast<int>(ExitCode::does_not_fit));
}

}  // namespace

void add_plan(CLI::App& app) {
  auto* verb =
      app.add_subcommand("plan", "the memory of a `train` command line, and the longest context that fits");
  const auto options = std::make_shared<TrainOptions>();
  const auto json = std::make_shared<std::string>();
  add_train_options(*verb, *options);
  verb->get_option("--data")->required(false);
  verb->get_option("--out")->required(false);
  add_json(*verb, *json, "the table");
  verb->footer(
      "Examples:\n"
      "  sinklora plan --model llama-2-7b --context 32768 --recompute block\n"
      "  sinklora plan --model llama-2-7b --context 8192 --device cuda --gpus 8 --shard-base\n"
      "  sinklora plan --model smollm2 --context 2048 --batch 4 --memory-limit 16 --json -\n"
      "Exit codes: 0 it fits, 2 wrong command line, 3 broken input, 4 it does not fit.");
  verb->callback([options, json] {
    options->precision = precision_on(options->device, options->precision);
    print_plan(*options, *json);
  });
}

}  // namespace sinklora
