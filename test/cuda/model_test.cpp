// The whole model on the GPU against the CPU: loss, every gradient, and two training steps.
#include "kernels/backend.h"
#include "test/cuda/gpu_test.h"
#include "test/cuda/rounding_ops.h"
#include "test/model/toy_model.h"
#include "train/optimizer.h"
#include "train/utilization.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

struct Outcome {
  double loss = 0;
  std::vector<std::string> names;
  std::vector<std::vector<double>> gradients;
};

Outcome gradients_of(ToyModel& model, const Batch& batch, const AttentionPattern& pattern) {
  Outcome outcome;
  model.llama.zero_gradients();
  outcome.loss =
      model.llama.accumulate_gradients(batch, pattern, 1.0 / static_cast<double>(batch.scored_tokens));
  for (const Parameter& parameter : model.llama.weights().parameters) {
    if (!parameter.trained()) continue;
    outcome.names.push_back(parameter.name);
    outcome.gradients.push_back(download_numbers<double>(*model.ops, parameter.weight.gradient));
  }
  return outcome;
}

// |a - b| / |b|; NaN where either holds one.
double relative(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) difference += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
  return std::sqrt(difference / size);
}

// Weights, oracle and all, rounded to bf16, so that only the arithmetic differs.
void round_weights(ToyModel& model) {
  for (const Parameter& parameter : model.llama.weights().parameters) {
    auto numbers = download_numbers<float>(*model.ops, parameter.weight.value);
    for (float& x : numbers) x = static_cast<float>(BFloat16(x));
    upload_numbers(*model.ops, parameter.weight.value, numbers);
  }
}

const std::vector<std::string> kAllLinears{"q", "k", "v", "o", "gate", "up", "down"};

}  // namespace

TEST_CASE("f32 on the GPU: loss and all gradients as near to f64 as f32 on the CPU, all patterns") {
  const LlamaConfig config = toy_config();
  const Batch batch = toy_batch({23, 14, 1}, config.vocab_size, 1);
  ModelOptions full;
  full.train_all = true;
  for (const ModelOptions& options : {lora_plus(config, kAllLinears), lora_plus(config, {"q", "v"}), full}) {
    for (const AttentionOptions& attention : all_patterns()) {
      CAPTURE(attention.kind);
      const AttentionPattern pattern = make_pattern(attention, 23, config.num_heads);
      ToyModel oracle(DType::f64, config, options, batch.tokens(), Recompute::none());
      ToyModel cpu(DType::f32, config, options, batch.tokens(), Recompute::none());
      ToyModel gpu(make_ops("cuda", "fp32"), config, options, batch.tokens(), Recompute::none());
      const Outcome truth = gradients_of(oracle, batch, pattern), plain = gradients_of(cpu, batch, pattern),
                    ours = gradients_of(gpu, batch, pattern);
      constexpr double kFloor = 32 * 6e-8;  // some 30 roundings in a row are within luck
      CHECK(std::fabs(ours.loss - truth.loss) <=
            std::max(kAllowed * std::fabs(plain.loss - truth.loss), kFloor * truth.loss));
      for (size_t i = 0; i < truth.names.size(); ++i) {
        CAPTURE(truth.names[i]);
        CHECK(relative(ours.gradients[i], truth.gradients[i]) <=
              std::max(kAllowed * relative(plain.gradients[i], truth.gradients[i]), kFloor));
      }
    }
  }
}

TEST_CASE("bf16 on the GPU: loss within 0.5 %, gradients as near to f64 as a plain bf16 evaluation") {
  const LlamaConfig config = toy_config();
  const Batch batch = toy_batch({61, 14}, config.vocab_size, 2);
  const ModelOptions options = lora_plus(config, kAllLinears);
  for (const AttentionOptions& attention : all_patterns()) {
    CAPTURE(attention.kind);
    const AttentionPattern pattern = make_pattern(attention, 61, config.num_heads);
    ToyModel oracle(DType::f64, config, options, batch.tokens(), Recompute::none());
    ToyModel rounding(std::make_unique<RoundingOps>(), config, options, batch.tokens(), Recompute::none());
    ToyModel gpu(make_ops("cuda", "bf16"), config, options, batch.tokens(), Recompute::none());
    round_weights(oracle), round_weights(rounding);
    const Outcome truth = gradients_of(oracle, batch, pattern),
                  plain = gradients_of(rounding, batch, pattern), ours = gradients_of(gpu, batch, pattern);
    CHECK(std::fabs(ours.loss - truth.loss) <= 0.005 * truth.loss);
    double sum = 0, plain_sum = 0;
    for (size_t i = 0; i < truth.names.size(); ++i) {
      const double error = relative(ours.gradients[i], truth.gradients[i]),
                   allowed = relative(plain.gradients[i], truth.gradients[i]);
      CAPTURE(truth.names[i]);
      CHECK(error <= kAllowed * allowed);
      sum += error, plain_sum += allowed;
    }
    const auto mean = [&](double total) { return total / static_cast<double>(truth.names.size()); };
    MESSAGE(attention.kind << ": loss " << ours.loss << " against " << truth.loss << ", gradients off by "
                           << mean(sum) << " on average, plain ones by " << mean(plain_sum));
  }
}

TEST_CASE("recompute changes no bit on the GPU, and neither does a second run") {
  LlamaConfig config = toy_config();
  config.num_layers = 5;
  const Batch batch = toy_batch({31, 9, 20}, config.vocab_size, 3);
  Recompute some = Recompute::block(), offloaded = Recompute::block();
  some[Kept::attention] = 2, some[Kept::gate_up] = 3, some[Kept::x_mid] = Recompute::kAllLayers;
  offloaded[Kept::qkv] = 1;
  offloaded.offload = true;
  for (const char* precision : {"fp32", "bf16"})
    for (const int64_t tile : {kMlpTile, int64_t{32}}) {
      CAPTURE(precision);
      std::vector<Outcome> outcomes;
      for (const Recompute& recompute :
           {Recompute::none(), Recompute::none(), Recompute::cheap(), Recompute::block(), some, offloaded}) {
        ToyModel model(make_ops("cuda", precision), config, lora_plus(config, {"q", "v", "o", "down"}),
                       batch.tokens(), recompute, tile);
        outcomes.push_back(gradients_of(model, batch, make_pattern({}, 31, config.num_heads)));
      }
      for (const Outcome& outcome : outcomes) {
        CHECK(outcome.loss == outcomes[0].loss);
        CHECK(outcome.gradients == outcomes[0].gradients);
      }
    }
}

TEST_CASE("the memory of a run on the GPU is the GPU's") {
  const std::unique_ptr<Ops> gpu = make_ops("cuda", "bf16");
  const int64_t before = available_memory("cuda");
  void* const memory = gpu->allocate(int64_t{3} << 30);
  CHECK(memory_gib("cuda", 0, before) == doctest::Approx(3).epsilon(0.01));
  gpu->release(memory);
  CHECK(memory_gib("cuda", 0, before) < 0.03);
}

TEST_CASE("two training steps: f32 follows the CPU, bf16 lowers the loss as far") {
  const LlamaConfig config = toy_config();
  const Batch batch = toy_batch({41, 30}, config.vocab_size, 5);
  const ModelOptions options = lora_plus(config, kAllLinears);
  const AttentionPattern pattern = make_pattern({}, 41, config.num_heads);
  const auto losses = [&](std::unique_ptr<Ops> ops) {
    ToyModel model(std::move(ops), config, options, batch.tokens(), Recompute::none());
    std::vector<double> all;
    AdamWStep step{3e-3, 0.9, 0.95, 1e-8, 0.0, 1, 1.0};
    for (; step.step <= 2; ++step.step) {
      model.llama.zero_gradients();
      all.push_back(
          model.llama.accumulate_gradients(batch, pattern, 1.0 / static_cast<double>(batch.scored_tokens)));
      step.gradient_scale = std::min(1.0, 1.0 / gradient_norm(*model.ops, model.llama.weights()));
      update_parameters(*model.ops, model.llama.weights(), step);
    }
    double last = 0;
    for (const double x : model.llama.nll(batch, pattern)) last += x;
    all.push_back(last);
    return all;
  };
  const auto truth = losses(make_cpu_ops(DType::f64)), single = losses(make_ops("cuda", "fp32")),
             half = losses(make_ops("cuda", "bf16"));
  CHECK(truth[2] < truth[0]);
  for (size_t i = 0; i < truth.size(); ++i) {
    // AdamW's first steps are signs of gradients: one near zero may step the other way in f32, but few do.
    CHECK(std::fabs(single[i] - truth[i]) <= 1e-4 * truth[i]);
    CHECK(std::fabs(half[i] - truth[i]) <= 0.02 * truth[i]);
  }
  CHECK(half[2] < half[0]);
  CHECK(losses(make_ops("cuda", "bf16")) == half);
}
