// --config FILE.toml: keys outside any [section] belong to the verb on the command line, so that run.toml can
// be given back.
#pragma once

#include <CLI/CLI.hpp>

namespace sinklora {

class ConfigFile : public CLI::ConfigTOML {
 public:
  explicit ConfigFile(CLI::App& app) : app_(app) {}

  // Gives the options their values itself and returns nothing: CLI11 would name neither the file nor the
  // line of what is wrong, and knows no longer what the command line had said. Whatever that says wins, also
  // over an option that excludes it.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;

 private:
  CLI::App& app_;
};

}  // namespace sinklora
