#include "train/bench.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/random.h"
#include "kernels/backend.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/trainer.h"

namespace sinklora {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
constexpr double kH100DenseBf16 = 989.4e12;  // operations a second, by NVIDIA's datasheet
constexpr size_t kPool = 1 << 22;            // random numbers that all weights share

LlamaConfig shape_named(const std::string& name) {
  LlamaConfig c;  // LLaMA-2-7B as it is
  if (name == "llama2-7b") return c;
  if (name == "llama3-8b") {
    c.vocab_size = 128256, c.intermediate_size = 14336, c.num_kv_heads = 8, c.rope_theta = 500000;
    return c;
  }
  if (name == "smollm2-135m") {
    c.vocab_size = 49152, c.hidden_size = 576, c.intermediate_size = 1536, c.num_layers = 30;
    c.num_heads = 9, c.num_kv_heads = 3, c.head_dim = 64, c.rope_theta = 1e5, c.tied_embeddings = true;
    return c;
  }
  fail_usage("--shape {}: choose llama2-7b, llama3-8b or smollm2-135m", name);
}

void randomize(Ops& ops, const Weights& weights) {
  const RandomStream random(1, "bench");
  std::vector<float> pool(kPool);
  for (size_t i = 0; i < kPool; ++i) pool[i] = static_cast<float>(0.02 * random.normal(i));
  const std::vector<float> ones(kPool, 1.0f);
  for (const Parameter& parameter : weights.parameters) {
    const bool norm = parameter.name.find("norm.weight") != std::string::npos;
    const Tensor& value = parameter.weight.value;
    const int64_t rows = std::max<int64_t>(1, static_cast<int64_t>(kPool) / value.row_size());
    for (int64_t row = 0; row < value.rows(); row += rows) {
      const int64_t count = std::min(rows, value.rows() - row);
      const std::span numbers(norm ? ones.data() : pool.data(),
                              static_cast<size_t>(count * value.row_size()));
      upload_numbers(ops, value.row_slice(row, count), numbers);
      const Tensor& master = parameter.weight.master;
      if (master && master.data != value.data) upload_numbers(ops, master.row_slice(row, count), numbers);
    }
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
  double pairs = 0;
  for (int64_t head = 0; head < c.num_heads; ++head)
    for (int64_t i = 0; i < bench.context; ++i) {
      const RangePair keys = key_ranges(pattern, head, i, bench.context);
      for (const Range& range : {keys.first, keys.second})
        pairs += static_cast<double>(std::max<int64_t>(0, range.end - range.begin));
    }
  return (bench.trainable == "full" ? 6.0 : 4.0) * weights * tokens +
         14.0 * static_cast<double>(c.head_dim * c.num_layers * bench.batch) * pairs;
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
  const std::unique_ptr<Ops> ops = make_ops(bench.device, bench.precision);
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
    const auto begin = std::chrono::steady_clock::now();
    llama.zero_gradients();
    llama.accumulate_gradients(batch, pattern, 1.0 / static_cast<double>(batch.scored_tokens));
    const double norm = gradient_norm(*ops, llama.weights());
    update_parameters(
        *ops, llama.weights(),
        {.learning_rate = 1e-6, .step = step, .gradient_scale = std::min(1.0, 1.0 / (norm + 1e-6))});
    ops->synchronize();
    if (step > bench.warmup)
      milliseconds.push_back(1e3 *
                             std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + bench.steps / 2, milliseconds.end());
  const double median = milliseconds[static_cast<size_t>(bench.steps / 2)];
  const bool on_gpu = bench.device == "cuda";
  const double memory =
      on_gpu ? static_cast<double>(free_before - available_memory(bench.device)) / kGiB : peak_memory_gib();
  const double rate = operations(bench, config, pattern) / (median * 1e-3);
  return {{"shape", bench.shape},
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
}

}  // namespace sinklora
