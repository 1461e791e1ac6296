// sinklora env: versions, the machine, and the settings in force; what a report of a problem should hold.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/format.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "train/environment.h"

namespace sinklora {
namespace {

void print(const Json& environment) {
  for (const auto& [key, value] : environment.items()) {
    std::string label = key, text;
    if (key.ends_with("_bytes")) {
      label = key.substr(0, key.size() - std::string("_bytes").size());
      text = value.is_null() ? "not known" : format_bytes(value.get<double>());
    } else if (value.is_array()) {
      text = fmt::format("{}", fmt::join(value.get<std::vector<std::string>>(), key == "gpus" ? "; " : " "));
    } else if (key == "settings") {
      for (const auto& [name, setting] : value.items())
        text += fmt::format("{}={} ", name, setting.get<std::string>());
    } else {
      text = value.is_string() ? value.get<std::string>() : value.dump();
    }
    std::replace(label.begin(), label.end(), '_', ' ');
    fmt::print("{:<17} {}\n", label, text.empty() ? "none" : text);
  }
}

}  // namespace

void add_env(CLI::App& app) {
  auto json = std::make_shared<std::string>();
  CLI::App& verb = *app.add_subcommand("env", "versions, devices and settings in force");
  add_json(verb, *json);
  verb.footer(
      "Examples:\n"
      "  sinklora env\n"
      "  sinklora env --json -\n"
      "  OMP_NUM_THREADS=1 sinklora env --json env.json\n"
      "Exit codes: 0 done, 2 wrong command line, 3 the file cannot be written.");
  verb.callback([json] {
    const Json found = environment();
    if (!write_result(*json, found)) print(found);
  });
}

}  // namespace sinklora
