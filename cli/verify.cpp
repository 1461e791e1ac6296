#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "base/child.h"
#include "base/error.h"
#include "cli/option_checks.h"
#include "cli/path_kind.h"
#include "cli/verbs.h"
#include "model/describe.h"

namespace sinklora {
namespace {

std::string verify_one(const std::filesystem::path& path) {
  switch (kind_of(path)) {
    case PathKind::adapter:
      return verify_adapter(path);
    case PathKind::model:
      return verify_model(path);
    case PathKind::dataset:
      return verify_dataset(path);
    case PathKind::safetensors:
      return verify_safetensors(path);
  }
  fail_internal("{}: of no kind", path.string());
}

}  // namespace

void add_verify(CLI::App& app) {
  auto paths = std::make_shared<std::vector<std::string>>();
  CLI::App* verb = app.add_subcommand(
      "verify", "read files as if a stranger had made them and say what is wrong with them");
  accept_run(verb->add_option("PATH", *paths,
                              "model or adapter directories, runs, safetensors files, shards, token streams"))
      ->required()
      ->type_name("PATH...")
      ->group("Input");
  verb->footer(
      "Each file is read whole in a process of its own: a reader that crashes is reported, not suffered.\n"
      "Examples:\n"
      "  sinklora verify llama-7b\n"
      "  sinklora verify run/step-00001000 llama-7b/model-00001-of-00002.safetensors\n"
      "  sinklora verify downloaded-adapter && sinklora merge --model llama-7b --adapter downloaded-adapter "
      "--out merged\n"
      "Exit codes: 0 nothing is wrong, 2 wrong command line, 3 at least one is broken or not recognised.");
  verb->callback([paths] {
    size_t broken = 0;
    for (const std::string& path : *paths) {
      const ChildResult result = run_in_child([&] { return verify_one(path); });
      if (result.ok)
        fmt::print("ok       {}\n{}{}", path, result.text, result.text.ends_with('\n') ? "" : "\n");
      else
        fmt::print("BROKEN   {}\n         {}\n", path, result.text);
      broken += !result.ok;
    }
    if (broken > 0) fail_input("{} of {} are broken", broken, paths->size());
  });
}

}  // namespace sinklora
