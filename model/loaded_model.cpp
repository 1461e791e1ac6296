#include "model/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/backend.h"

namespace sinklora {
namespace {

RopeScaling scaling_in_force(const InferenceOptions& options, const LlamaConfig& config) {
  if (options.rope_scaling == "auto" && !options.adapter.empty())
    if (const AdapterRunInfo info = read_run_info(options.adapter); info.rope) return *info.rope;
  const RopeScaling scaling = parse_rope_scaling(options.rope_scaling, config, options.context);
  if (options.notes && options.rope_scaling == "auto" && scaling != config.rope) {
    // Other types than these two are kept or refused.
    const bool linear = config.rope.type == RopeScaling::Type::linear;
    fmt::print(stderr,
               "note: a context of {} is beyond the model's {:.0f} positions: RoPE {} (--rope-scaling {} "
               "keeps its own)\n",
               options.context, reach_of(config), describe(scaling),
               linear ? fmt::format("linear:{}", config.rope.factor) : "none");
  }
  return scaling;
}

}  // namespace

std::unique_ptr<Llama> load_for_inference(const InferenceOptions& options, Ops& ops) {
  const ModelDirectory directory(options.model);
  LlamaConfig config = directory.config();
  config.rope = scaling_in_force(options, config);
  Adapter adapter;
  if (!options.adapter.empty()) adapter = read_adapter(options.adapter, config);
  if (!options.adapter.empty() && options.notes) note_other_base(options.adapter, options.model);
  ModelOptions model;
  model.adapters = adapter_specs(adapter);
  model.untie_head = config.tied_embeddings && !keeps_head_tied(adapter);
  model.frozen_dtype = frozen_dtype(options.precision);

  const int64_t all = options.context * options.batch;
  const int64_t tokens = options.chunk > 0 ? std::min(options.chunk, all) : all;
  auto llama = std::make_unique<Llama>(
      ops, config, model,
      PassOptions{.max_tokens = tokens, .max_sequences = tokens, .max_context = options.context});
  int64_t needed = llama->scratch_bytes();
  for (const Arena* arena : llama->arenas()) needed += arena->bytes();
  expect_room(options.device, needed, fmt::format("a model laid out for --context {}", options.context));
  llama->allocate();
  directory.verify_sums();
  llama->weights().load(ops, directory);
  llama->weights().load_adapter(ops, adapter);
  return llama;
}

LoadedModel load_for_inference(const InferenceOptions& options) {
  LoadedModel loaded;
  loaded.ops = make_ops(options.device, options.precision);
  loaded.llama = load_for_inference(options, *loaded.ops);
  return loaded;
}

}  // namespace sinklora
