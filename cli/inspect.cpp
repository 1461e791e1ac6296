// sinklora inspect: says in words what a path holds.
#include <fmt/format.h>

#include <memory>
#include <string>

#include "cli/option_checks.h"
#include "cli/path_kind.h"
#include "cli/verbs.h"
#include "model/describe.h"

namespace sinklora {
namespace {

struct Arguments {
  std::string path, tokenizer;
  InspectOptions dataset;
};

void inspect_data(const Arguments& arguments) {
  std::unique_ptr<Tokenizer> tokenizer;
  if (!arguments.tokenizer.empty()) tokenizer = open_tokenizer(arguments.tokenizer);
  inspect_dataset(arguments.path, arguments.dataset, tokenizer.get(), stdout);
}

void run(const Arguments& arguments) {
  switch (kind_of(arguments.path)) {
    case PathKind::adapter:
      return fmt::print("{}\n", describe_adapter(arguments.path));
    case PathKind::model:
      return fmt::print("{}\n", describe_model(arguments.path));
    case PathKind::dataset:
      return inspect_data(arguments);
    case PathKind::safetensors:
      return fmt::print("{}\n", describe_safetensors(arguments.path));
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "inspect", "a dataset, model, adapter or checkpoint in words; samples of tokens and labels");
  const auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  accept_run(
      verb->add_option("path", a.path,
                       "a shard, a directory of shards, a token stream (.bin), a model, an adapter or a run"))
      ->required()
      ->type_name("PATH")
      ->group("Input");
  verb->add_option("--tokenizer", a.tokenizer,
                   "shows pieces beside ids: tokenizer file, model directory, or byte")
      ->type_name("FILE")
      ->group("Input");
  add_count(*verb, "--context", a.dataset.context, "tokens of a sample of a .bin; checked against shards", 0,
            int64_t{1} << 24)
      ->group("Input");
  add_count(*verb, "--samples", a.dataset.samples, "samples to print, tokens and labels side by side")
      ->group("Output");
  add_count(*verb, "--positions", a.dataset.positions, "positions of each sample to print")->group("Output");
  verb->footer(
      "Examples:\n"
      "  sinklora inspect books\n"
      "  sinklora inspect sft --samples 2 --tokenizer Llama-2-7b\n"
      "  sinklora inspect proof-pile.bin --context 8192 --samples 1\n"
      "Every sample is read and checked once.\n"
      "Exit codes: 0 done, 2 wrong command line, 3 broken input.");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace sinklora
