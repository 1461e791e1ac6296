#include "train/bench.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/random.h"
#include "kernels/backend.h"
#include "kernels/operation_counts.h"
#include "kernels/timed_ops.h"
#include "model/shapes.h"
#include "train/bench_data.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/trainer.h"

namespace sinklora {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
constexpr double kH100DenseBf16 = 989.4e12;  // operations a second, by NVIDIA's datasheet

void randomize(Ops& ops, const Weights& weights) {
  const NormalNumbers matrices(ops, 0, 0.02), gains(ops, 1, 0);
  for (const Parameter& parameter : weights.parameters) {
    const bool norm = parameter.name.find("norm.weight") != std::string::npos;
    const Tensor &value = parameter.weight.value, &master = parameter.weight.master;
    (norm ? gains : matrices).fill(value);
    if (master && master.data != value.data) (norm ? gains : matrices).fill(master);
  }
}

Batch random_batch(const StepBench& bench, int64_t vocab) {
  const RandomStream random(2, "bench");
  std::vector<Sample> samples;
  std::vector<int64_t> ids;
  for (int64_t b = 0; b < bench.batch; ++b) {
    Sample sample{{}, {}, {0}};
    for (int64_t t = 0; t < bench.context; ++t)
      sample.ids.push_back(static_cast<int32_t>(
          random.below(static_cast<uint64_t>(b * bench.context + t), static_cast<uint64_t>(vocab))));
    sample.targets.assign(sample.ids.begin() + 1, sample.ids.end());
    sample.targets.push_back(kNotScored);
    samples.push_back(std::move(sample));
    ids.push_back(b);
  }
  return make_batch(samples, ids);
}

double operations(const StepBench& bench, const LlamaConfig& c, const AttentionPattern& pattern) {
  const auto tokens = static_cast<double>(bench.batch * bench.context);
  const int64_t block =
      c.hidden_size * (c.qkv_width() + c.query_width()) + 3 * c.hidden_size * c.intermediate_size;
  const auto weights = static_cast<double>(c.num_layers * block + c.vocab_size * c.hidden_size);
  const auto pairs = static_cast<double>(visible_pairs(pattern, c.num_heads, bench.context));
  return (bench.trainable == "full" ? 6.0 : 4.0) * weights * tokens +
         14.0 * static_cast<double>(c.head_dim * c.num_layers * bench.batch) * pairs;
}

// One training step; returns its milliseconds.
double run_step(Llama& llama, const Batch& batch, const AttentionPattern& pattern, int64_t number) {
  const auto begin = std::chrono::steady_clock::now();
  llama.zero_gradients();
  llama.accumulate_gradients(batch, pattern, 1.0 / static_cast<double>(batch.scored_tokens));
  const double norm = gradient_norm(llama.ops(), llama.weights());
  update_parameters(
      llama.ops(), llama.weights(),
      {.learning_rate = 1e-6, .step = number, .gradient_scale = std::min(1.0, 1.0 / (norm + 1e-6))});
  llama.ops().synchronize();
  return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Json profile_json(const std::vector<OpTime>& rows, double step_ms) {
  double sum = 0;
  for (const OpTime& row : rows) sum += row.milliseconds;
  Json list = Json::array();
  for (const OpTime& row : rows) {
    const double seconds = row.milliseconds * 1e-3;
    list.push_back({{"op", row.name},
                    {"calls", row.calls},
                    {"ms", row.milliseconds},
                    {"share", row.milliseconds / sum},
                    {"tflops", row.operations > 0 ? Json(row.operations / seconds * 1e-12) : Json(nullptr)},
                    {"gb_per_s", row.bytes > 0 ? Json(row.bytes / seconds * 1e-9) : Json(nullptr)}});
  }
  return {{"step_ms", step_ms}, {"sum_ms", sum}, {"ops", list}};
}

}  // namespace

Json bench_step(const StepBench& bench) {
  const LlamaConfig config = shape_named(bench.shape);
  const AttentionPattern pattern = make_pattern(bench.attention, bench.context, config.num_heads);
  ModelOptions model;
  model.frozen_dtype = frozen_dtype(bench.precision);
  model.train_all = bench.trainable == "full";
  if (!model.train_all) {
    model.adapters = uniform_adapters(config, {"q", "k", "v", "o"}, 8, 16);
    model.train_adapters = true;
    model.train_embeddings = model.train_norms = bench.trainable == "lora+";
  }
  const int64_t free_before = available_memory(bench.device);
  std::unique_ptr<Ops> ops = make_ops(bench.device, bench.precision);
  TimedOps* timed = nullptr;
  if (bench.profile) {
    auto watched = std::make_unique<TimedOps>(std::move(ops));
    timed = watched.get();
    ops = std::move(watched);
  }
  const int64_t tokens = bench.batch * bench.context;
  TrainOptions options;
  options.device = bench.device, options.recompute = bench.recompute, options.offload = bench.offload;
  options.context = bench.context, options.memory_limit = bench.memory_limit;
  const TrainSetup setup{config, model, pattern, tokens};
  const MemoryPlan plan = plan_memory(options, setup, *ops);
  Llama llama(*ops, config, model, pass_options(options, setup, plan.recompute));
  llama.allocate();
  randomize(*ops, llama.weights());
  const Batch batch = random_batch(bench, config.vocab_size);

  std::vector<double> milliseconds;
  for (int64_t step = 1; step <= bench.warmup + bench.steps; ++step) {
    const double time = run_step(llama, batch, pattern, step);
    if (step > bench.warmup) milliseconds.push_back(time);
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + bench.steps / 2, milliseconds.end());
  const double median = milliseconds[static_cast<size_t>(bench.steps / 2)];
  const bool on_gpu = bench.device == "cuda";
  const double memory =
      on_gpu ? static_cast<double>(free_before - available_memory(bench.device)) / kGiB : peak_memory_gib();
  const double rate = operations(bench, config, pattern) / (median * 1e-3);
  Json result{{"shape", bench.shape},
              {"context", bench.context},
              {"batch", bench.batch},
              {"attention", bench.attention.kind},
              {"trainable", bench.trainable},
              {"recompute", bench.recompute},
              {"kept", describe(plan.recompute, config.num_layers)},
              {"precision", bench.precision},
              {"gpus", on_gpu ? 1 : 0},
              {"tokens_per_s", 1e3 * static_cast<double>(tokens) / median},
              {"step_ms", median},
              {"peak_mem_gib", memory},
              {"planned_mem_gib", static_cast<double>(plan.total) / kGiB},
              {"tflops", rate * 1e-12},
              {"mfu", on_gpu && bench.precision == "bf16" ? Json(rate / kH100DenseBf16) : Json(nullptr)},
              {"device", bench.device}};
  if (timed) {
    timed->record();
    const double time = run_step(llama, batch, pattern, bench.warmup + bench.steps + 1);
    timed->stop();
    result["profile"] = profile_json(timed->rows(), time);
  }
  return result;
}

}  // namespace sinklora
