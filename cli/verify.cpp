#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <vector>

#include "base/child.h"
#include "base/error.h"
#include "cli/option_checks.h"
#include "cli/verbs.h"
#include "data/inspect_dataset.h"
#include "model/describe.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

// What can be verified: how it is recognised, and the function that reads all of it. The first that fits is
// taken.
struct FileKind {
  const char* name;
  bool (*fits)(const fs::path& path);
  std::string (*verify)(const fs::path& path);
};
constexpr FileKind kFileKinds[] = {
    {"adapter directory", [](const fs::path& path) { return fs::exists(path / "adapter_config.json"); },
     verify_adapter},
    {"model directory", [](const fs::path& path) { return fs::exists(path / "config.json"); }, verify_model},
    {"shards or token stream", is_dataset, verify_dataset},
    {"safetensors file", [](const fs::path& path) { return path.extension() == ".safetensors"; },
     verify_safetensors},
};

std::string verify_one(const fs::path& path) {
  if (!fs::exists(path)) fail_input("{}: no such file or directory", path.string());
  for (const FileKind& kind : kFileKinds)
    if (kind.fits(path)) return kind.verify(path);
  std::string names;
  for (const FileKind& kind : kFileKinds) names += fmt::format("{}{}", names.empty() ? "" : ", ", kind.name);
  fail_input("{}: not recognised; wanted one of: {}", path.string(), names);
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
