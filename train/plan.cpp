#include "train/plan.h"

#include <algorithm>

#include "base/format.h"
#include "kernels/backend.h"
#include "kernels/operation_counts.h"

namespace sinklora {
namespace {

// What is in no arena and no scratch memory. On the CPU: code, libraries, the loader's batches. On a GPU:
// code and handles; its context is no longer free memory when the plan is made.
constexpr int64_t kProcessBytes = int64_t{128} << 20, kGpuProcessBytes = int64_t{16} << 20;

// What saving copies: an adapter whole, a model tensor by tensor.
int64_t saving_bytes(const TrainOptions& options, const TrainSetup& setup, Llama& model) {
  const LlamaConfig& c = setup.config;
  const int64_t largest = 4 * c.hidden_size * std::max(c.vocab_size, c.intermediate_size);
  return options.trainable == "full" ? largest : model.weights().gradients.bytes();
}

MemoryPlan lay_out(const TrainOptions& options, const TrainSetup& setup, Ops& ops,
                   const Recompute& recompute) {
  Llama model(ops, setup.config, setup.model, pass_options(options, setup, recompute));
  MemoryPlan plan;
  plan.recompute = recompute;
  for (const Arena* arena : model.arenas()) {
    const bool host = arena->place() == Arena::Place::host && ops.device() != Device::cpu;
    if (host)
      plan.host_total += arena->bytes();
    else if (arena->bytes() > 0)
      plan.lines.push_back({arena->name(), arena->bytes()});
  }
  plan.lines.push_back({"scratch of the operations", model.scratch_bytes()});
  if (ops.device() == Device::cpu)
    plan.lines.push_back({"copies while saving", saving_bytes(options, setup, model)});
  plan.lines.push_back(
      {"program and libraries", ops.device() == Device::cpu ? kProcessBytes : kGpuProcessBytes});
  for (const MemoryLine& line : plan.lines) plan.total += line.bytes;
  plan.available = available_memory(options.device, options.device_index);
  if (ops.device() == Device::cpu) plan.available /= options.processes_here;
  if (options.memory_limit > 0)
    plan.available = std::min(plan.available, static_cast<int64_t>(options.memory_limit * kGiB));
  // Page-locked memory is taken from everyone else on the machine: no more than three quarters of what is
  // free.
  plan.host_available = plan.host_total > 0 ? available_memory("cpu") / 4 * 3 / options.processes_here : 0;
  return plan;
}

bool memory_bound(Kept group) {
  return group == Kept::attention_norm || group == Kept::mlp_norm || group == Kept::swiglu;
}

}  // namespace

// Bytes of activations in bf16. A GEMM counts its operations; attention runs at about half of a GEMM's rate;
// a byte moved costs what about 250 operations do (700 TFLOP/s beside 2.8 TB/s).
std::vector<KeptChoice> kept_choices(const TrainOptions& options, const TrainSetup& setup) {
  constexpr double kByte = 250, kAttention = 2;
  const LlamaConfig& c = setup.config;
  const auto h = static_cast<double>(c.hidden_size), q = static_cast<double>(c.query_width());
  const auto qkv = static_cast<double>(c.qkv_width()), f = static_cast<double>(c.intermediate_size);
  const double norm = 4 * h * kByte;
  const double keys = static_cast<double>(visible_pairs(setup.pattern, c.num_heads, options.context)) /
                      static_cast<double>(c.num_heads * options.context);  // that a query sees, in the mean
  std::vector<KeptChoice> choices{
      {Kept::attention_norm, 2 * h, norm},
      {Kept::mlp_norm, 2 * h, norm},
      {Kept::swiglu, 2 * f, 6 * f * kByte},
      {Kept::qkv, 2 * qkv, 2 * h * qkv + norm + 4 * qkv * kByte},
      {Kept::attention, 2 * q + 4 * static_cast<double>(c.num_heads), kAttention * 4 * q * keys},
      {Kept::x_mid, 2 * h, 2 * q * h + 2 * norm},
      {Kept::gate_up, 4 * f, 4 * h * f}};
  std::sort(choices.begin(), choices.end(),
            [](const KeptChoice& a, const KeptChoice& b) { return a.cost() < b.cost(); });
  return choices;
}

PassOptions pass_options(const TrainOptions& options, const TrainSetup& setup, const Recompute& recompute) {
  return {.max_tokens = setup.max_tokens,
          .max_sequences = setup.max_tokens,
          .usual_sequences = options.batch * setup.most_documents,
          .max_context = options.context,
          .training = true,
          .recompute = recompute,
          .pattern = setup.pattern};
}

MemoryPlan plan_memory(const TrainOptions& options, const TrainSetup& setup, Ops& ops) {
  const auto planned = [&](const Recompute& recompute) { return lay_out(options, setup, ops, recompute); };
  if (options.recompute != "auto") {
    Recompute recompute = parse_recompute(options.recompute);
    recompute.offload = options.offload;
    return planned(recompute);
  }
  Recompute recompute = Recompute::none();
  recompute.offload = options.offload;
  MemoryPlan plan = planned(recompute);
  const int64_t layers = setup.config.num_layers;
  for (const KeptChoice& choice : kept_choices(options, setup)) {
    if (plan.fits()) break;
    if (!memory_bound(choice.group) && !recompute.offload && ops.device() != Device::cpu) {
      recompute.offload = true;
      const MemoryPlan offloaded = planned(recompute);
      recompute.offload = offloaded.host_total <= offloaded.host_available;
      if (recompute.offload) plan = offloaded;
      if (plan.fits()) break;
    }
    // The most layers that can keep it. The first that drops it needs the shared buffer instead, so that
    // memory is linear from none to all but one.
    recompute[choice.group] = layers - 1;
    const int64_t most = planned(recompute).total;
    recompute[choice.group] = 0;
    plan = planned(recompute);
    if (!plan.fits() || most <= plan.total) continue;
    recompute[choice.group] =
        std::min(layers - 1, (plan.available - plan.total) * (layers - 1) / (most - plan.total));
    plan = planned(recompute);
  }
  return plan;
}

MemoryPlan plan_memory(const TrainOptions& options) {
  return plan_memory(options, resolve(options),
                     *make_ops(options.device, options.precision, options.device_index));
}

int64_t longest_context(TrainOptions options) {
  constexpr int64_t kStep = 256;
  const std::unique_ptr<Ops> ops = make_ops(options.device, options.precision, options.device_index);
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
