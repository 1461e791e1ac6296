#include "kernels/backend.h"
#include "train/trainer.h"

namespace sinklora {
namespace {

// Everything that is not in an arena: code, the libraries' buffers, the loader's batches and the head's
// logits chunk.
constexpr int64_t kProcessBytes = int64_t{256} << 20;

MemoryPlan lay_out(const TrainOptions& options, const TrainSetup& setup, Ops& ops, Recompute recompute) {
  const Llama model(ops, setup.config, setup.model,
                    {setup.max_tokens, setup.max_tokens, options.context, true, recompute});
  MemoryPlan plan;
  plan.recompute = recompute;
  for (const Arena* arena : model.arenas()) plan.lines.push_back({arena->name(), arena->bytes()});
  plan.lines.push_back({"program and libraries", kProcessBytes});
  for (const MemoryLine& line : plan.lines) plan.total += line.bytes;
  plan.available = available_memory(options.device);
  return plan;
}

}  // namespace

MemoryPlan plan_memory(const TrainOptions& options, const TrainSetup& setup, Ops& ops) {
  if (options.recompute != "auto") return lay_out(options, setup, ops, parse_recompute(options.recompute));
  for (const Recompute recompute : {Recompute::none, Recompute::cheap})
    if (MemoryPlan plan = lay_out(options, setup, ops, recompute); plan.fits()) return plan;
  return lay_out(options, setup, ops, Recompute::block);
}

MemoryPlan plan_memory(const TrainOptions& options) {
  return plan_memory(options, resolve(options), *make_ops(options.device, options.precision));
}

int64_t longest_context(TrainOptions options) {
  constexpr int64_t kStep = 256;
  const std::unique_ptr<Ops> ops = make_ops(options.device, options.precision);
  const auto fits = [&](int64_t steps) {
    options.context = steps * kStep;
    return plan_memory(options, resolve(options), *ops).fits();
  };
  int64_t low = 0, high = 1;
  while (high < (int64_t{1} << 16) && fits(high)) low = high, high *= 2;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low * kStep;
}

}  // namespace sinklora
