#include "bench/step.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/format.h"
#include "base/random.h"
#include "bench/common.h"
#include "kernels/timed_ops.h"
#include "model/shapes.h"
#include "train/data_parallel.h"
#include "train/optimizer.h"
#include "train/plan.h"
#include "train/utilization.h"

namespace sinklora {
namespace {

Batch random_batch(const StepBench& bench, int64_t vocab, int rank) {
  const RandomStream random(2 + static_cast<uint64_t>(rank), "bench");
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

// One training step, as train/trainer.cpp makes it; returns its milliseconds.
double run_step(Llama& llama, Communicator& ranks, GradientSum& sum, const Batch& batch,
                const AttentionPattern& pattern, int64_t number) {
  const auto begin = std::chrono::steady_clock::now();
  llama.zero_gradients();
  auto scored = static_cast<double>(batch.scored_tokens);
  ranks.sum_on_host({&scored, 1});
  double loss = llama.accumulate_gradients(batch, pattern, 1.0 / scored,
                                           [&](int64_t first_byte) { sum.ready_from(first_byte); });
  sum.finish();
  ranks.sum_on_host({&loss, 1});
  const double norm = gradient_norm(llama.ops(), llama.weights());
  update_parameters(
      llama.ops(), llama.weights(),
      {.learning_rate = 1e-6, .step = number, .gradient_scale = std::min(1.0, 1.0 / (norm + 1e-6))});
  llama.ops().synchronize();
  return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The median of the timed steps in milliseconds.
double median_step(const StepBench& bench, const std::function<double(int64_t number)>& step) {
  std::vector<double> milliseconds;
  for (int64_t number = 1; number <= bench.warmup + bench.steps; ++number) {
    const double time = step(number);
    if (number > bench.warmup) milliseconds.push_back(time);
  }
  return median(std::move(milliseconds));
}

double greatest_of_ranks(Communicator& ranks, double mine) {
  const std::vector<double> all = gather(ranks, std::vector{mine});
  return *std::max_element(all.begin(), all.end());
}

}  // namespace

Json bench_step(const StepBench& bench, const RankPlace& place) {
  const LlamaConfig config = shape_named(bench.shape);
  const AttentionPattern pattern = make_pattern(bench.attention, bench.context, config.num_heads);
  Communicator& ranks = place.ranks;
  TimedOps* timed = nullptr;
  if (bench.profile) {
    auto watched = std::make_unique<TimedOps>(std::move(place.ops));
    timed = watched.get();
    place.ops = std::move(watched);
  }
  const int64_t tokens = bench.batch * bench.context;
  TrainOptions options;
  options.device = bench.device, options.precision = bench.precision;
  options.trainable = bench.trainable, options.shard_base = bench.shard_base;
  options.recompute = bench.recompute, options.offload = bench.offload;
  options.context = bench.context, options.memory_limit = bench.memory_limit;
  options.device_index = place.device_index, options.processes_here = place.processes_here;
  const TrainSetup setup{config, model_options(options, config, ranks.world_size()), pattern, tokens};
  const MemoryPlan plan = plan_memory(options, setup, *place.ops);
  Llama llama(*place.ops, config, setup.model, pass_options(options, setup, plan.recompute));
  const AbortOnError guard(ranks);
  llama.allocate();
  llama.weights().base.connect(ranks);
  randomize(*place.ops, llama.weights());
  const Batch batch = random_batch(bench, config.vocab_size, ranks.rank());
  GradientSum sum(ranks, llama.weights());
  const auto step = [&](int64_t number) { return run_step(llama, ranks, sum, batch, pattern, number); };

  const double step_ms = greatest_of_ranks(ranks, median_step(bench, step));
  const bool on_gpu = bench.device == "cuda";
  const double memory =
      greatest_of_ranks(ranks, memory_gib(bench.device, place.device_index, place.free_memory));
  const double rate = model_operations(config, pattern, batch.offsets, bench.trainable == "full") /
                      (step_ms * 1e-3);  // of one rank
  const std::optional<double> peak = peak_operations(bench.device, bench.precision, place.device_index);
  Json result{{"shape", bench.shape},
              {"context", bench.context},
              {"batch", bench.batch},
              {"attention", bench.attention.kind},
              {"trainable", bench.trainable},
              {"recompute", bench.recompute},
              {"kept", describe(plan.recompute, config.num_layers)},
              {"precision", bench.precision},
              {"gpus", on_gpu ? ranks.world_size() : 0},
              {"ranks", ranks.world_size()},
              {"shard_base", setup.model.base_ranks > 1},
              {"tokens_per_s", 1e3 * static_cast<double>(tokens * ranks.world_size()) / step_ms},
              {"step_ms", step_ms},
              {"peak_mem_gib", memory},
              {"planned_mem_gib", static_cast<double>(plan.total) / kGiB},
              {"tflops", rate * 1e-12},
              {"mfu", peak ? Json(rate / *peak) : Json(nullptr)},
              {"device", bench.device}};
  if (timed) {
    timed->record();
    const double time = step(bench.warmup + bench.steps + 1);
    timed->stop();
    result["profile"] = profile_json(timed->rows(), time);
  }
  ranks.finish();
  ranks.barrier();
  return result;
}

}  // namespace sinklora
