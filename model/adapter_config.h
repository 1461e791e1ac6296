// adapter_config.json of a PEFT LoRA adapter.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace sinklora {

// A regular expression from a file, matched against whole module names under limits on time and depth.
class ModulePattern {
 public:
  ModulePattern(const std::string& expression, const std::string& source);
  bool matches(const std::string& module) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

// target_modules or exclude_modules: a list of names (of which each may be the tail of a module's name) or an
// expression.
struct ModuleSelection {
  std::vector<std::string> names;
  std::vector<ModulePattern> expression;  // one or none
  bool all_linear = false;
  bool empty() const { return names.empty() && expression.empty() && !all_linear; }
  bool contains(const std::string& module) const;
};

struct AdapterSettings {
  int64_t rank = 8;
  double alpha = 8.0;
  bool rslora = false;
  std::string base_model;
  ModuleSelection targets, excluded;
  std::vector<int64_t> layers;               // layers_to_transform; empty: all
  std::vector<std::string> modules_to_save;  // each may be the tail of a module's name
  std::vector<std::pair<ModulePattern, int64_t>> rank_pattern;
  std::vector<std::pair<ModulePattern, double>> alpha_pattern;

  bool selects(const std::string& module, int64_t layer) const;  // is this linear to have a LoRA?
  int64_t rank_of(const std::string& module) const;
  double scale_of(const std::string& module) const;  // alpha / rank, or alpha / sqrt(rank) with rsLoRA
};

// Throws Error(input) naming `source`, the key and the value found for everything that is not plain LoRA.
AdapterSettings parse_adapter_config(const Json& json, const std::string& source);
// Keys that parse_adapter_config() does not know.
std::vector<std::string> unknown_adapter_keys(const Json& json);

}  // namespace sinklora
