// A model (and adapter) from disk, ready to evaluate or to generate.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "model/llama.h"

namespace sinklora {

struct InferenceOptions {
  std::filesystem::path model, adapter;  // adapter: "" for none
  std::string rope_scaling = "auto";     // auto: as the adapter was trained, else as --context asks
  // Says on standard error when the context alone changes the angles (the model then computes other numbers than
  // with a shorter one), and when the adapter was trained on another model.
  bool notes = false;
  std::string device = "cpu", precision = "fp32";
  int64_t context = 0;  // longest sequence, tokens
  int64_t batch = 1;    // sequences at once
  int64_t chunk = 0;    // most tokens of one pass, when prompts go through a cache in chunks; 0: all at once
};

struct LoadedModel {
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Llama> llama;
};

LoadedModel load_for_inference(const InferenceOptions& options);
// On a backend that is there already; options.device and precision are those it was made for.
std::unique_ptr<Llama> load_for_inference(const InferenceOptions& options, Ops& ops);

}  // namespace sinklora
