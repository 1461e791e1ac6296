#include "model/recompute.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace sinklora {

const char* name_of(Kept group) {
  constexpr const char* kNames[kKeptGroups] = {"attention_norm", "qkv",     "attention", "x_mid",
                                               "mlp_norm",       "gate_up", "swiglu"};
  return kNames[static_cast<size_t>(group)];
}

Recompute Recompute::none() {
  Recompute all;
  all.layers.fill(kAllLayers);
  return all;
}

Recompute Recompute::cheap() {
  Recompute some = none();
  some[Kept::attention_norm] = some[Kept::mlp_norm] = some[Kept::swiglu] = 0;
  return some;
}

Recompute Recompute::block() { return {}; }

KeptTensors Recompute::at(int64_t layer, int64_t num_layers) const {
  KeptTensors kept;
  for (size_t i = 0; i < kKeptGroups; ++i) kept.groups[i] = layers[i] >= num_layers - layer;
  return kept;
}

Recompute parse_recompute(const std::string& word) {
  if (word == "none") return Recompute::none();
  if (word == "cheap") return Recompute::cheap();
  if (word == "block") return Recompute::block();
  fail_usage("--recompute {}: unknown; choose auto, none, cheap or block", word);
}

std::string describe(const Recompute& recompute, int64_t num_layers) {
  std::string text;
  for (size_t i = 0; i < kKeptGroups; ++i) {
    const int64_t layers = std::min(recompute.layers[i], num_layers);
    if (layers == 0) continue;
    text += text.empty() ? "keeps " : ", ";
    text += name_of(static_cast<Kept>(i));
    if (layers < num_layers) text += fmt::format(" in {} of {} layers", layers, num_layers);
  }
  if (text.empty()) text = "keeps block inputs alone";
  return recompute.offload ? text + "; block inputs in host memory" : text;
}

}  // namespace sinklora
