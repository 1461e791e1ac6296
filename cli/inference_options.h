// The options that load a model for inference, shared by the verbs that do.
#pragma once

#include <CLI/CLI.hpp>

#include "base/json.h"
#include "base/version.h"
#include "cli/option_checks.h"
#include "kernels/backend.h"
#include "model/loaded_model.h"

namespace sinklora {

// --context is left to the verb. `options` must outlive the parser.
inline void add_inference_options(CLI::App& verb, InferenceOptions& options) {
  auto* group = verb.add_option_group("Model");
  accept_run(group->add_option("--model", options.model,
                               "Hugging Face LLaMA directory, or a run that trained every weight"))
      ->required();
  accept_run(group->add_option("--adapter", options.adapter, "PEFT adapter, checkpoint or run to apply"));
  group
      ->add_option("--rope-scaling", options.rope_scaling,
                   "auto (as the adapter was trained, else up to --context), none, linear:F, dynamic:F, "
                   "yarn:F, llama3:F")
      ->capture_default_str()
      ->type_name("WORD");
  add_device(*group, options.device, options.precision);
}

inline void add_tokenizer(CLI::App& verb, std::filesystem::path& tokenizer) {
  verb.add_option("--tokenizer", tokenizer, "where the tokenizer is, if not in --model")->type_name("PATH");
}

inline void resolve_precision(InferenceOptions& options) {
  options.precision = precision_on(options.device, options.precision);
}

// What a result record says of the model and the program that measured it.
inline void add_origin(Json& record, const InferenceOptions& options) {
  record["precision"] = options.precision;
  record["device"] = options.device;
  record["model"] = options.model.string();
  record["adapter"] = options.adapter.empty() ? Json(nullptr) : Json(options.adapter.string());
  record["version"] = SINKLORA_VERSION;
  record["commit"] = built_commit();
}

}  // namespace sinklora
