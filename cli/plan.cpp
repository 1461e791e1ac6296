#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/output.h"
#include "cli/train_options.h"
#include "cli/verbs.h"
#include "train/trainer.h"

namespace sinklora {
namespace {

void print_plan(const TrainOptions& options, const std::string& json_path) {
  const MemoryPlan plan = plan_memory(options);
  const int64_t longest = longest_context(options);
  Json json{{"context", options.context}, {"batch", options.batch}, {"recompute", name_of(plan.recompute)}};
  for (const MemoryLine& line : plan.lines) json["bytes"][line.what] = line.bytes;
  json["total_bytes"] = plan.total;
  json["available_bytes"] = plan.available;
  json["fits"] = plan.fits();
  json["longest_context"] = longest;
  if (!write_result(json_path, json)) {
    for (const MemoryLine& line : plan.lines)
      fmt::print("{:<24}{:>12}\n", line.what, format_bytes(static_cast<double>(line.bytes)));
    fmt::print("{:<24}{:>12}   recompute {}\n", "sum", format_bytes(static_cast<double>(plan.total)),
               name_of(plan.recompute));
    fmt::print("{:<24}{:>12}\n", "available", format_bytes(static_cast<double>(plan.available)));
    fmt::print("longest context that fits with these options: {}\n", longest);
  }
  if (!plan.fits()) throw CLI::RuntimeError(static_cast<int>(ExitCode::does_not_fit));
}

}  // namespace

void add_plan(CLI::App& app) {
  auto* verb =
      app.add_subcommand("plan", "the memory of a `train` command line, and the longest context that fits");
  verb->fallthrough();
  const auto options = std::make_shared<TrainOptions>();
  const auto json = std::make_shared<std::string>();
  add_train_options(*verb, *options);
  verb->get_option("--data")->required(false);
  verb->get_option("--out")->required(false);
  verb->add_option("--json", *json, "write the table as JSON to FILE, - for standard output")
      ->type_name("FILE");
  verb->footer(
      "Exit codes: 0 it fits, 4 it does not.\n\nExample:\n"
      "  sinklora plan --model llama-2-7b --context 32768 --recompute block");
  verb->callback([options, json] { print_plan(*options, *json); });
}

}  // namespace sinklora
