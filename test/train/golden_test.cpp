// Loss, per-token loss and every gradient against transformers + PEFT (test/golden/model/README.md).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "model/loaded_model.h"
#include "model/rope.h"
#include "test/model/toy_model.h"
#include "test/temporary.h"
#include "train/optimizer.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

std::vector<double> read_f64(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.find(name);
  REQUIRE_MESSAGE(info, "golden tensor ", name);
  std::vector<double> numbers(static_cast<size_t>(info->elements()));
  file.read_bytes(*info, std::as_writable_bytes(std::span(numbers)));
  return numbers;
}

Batch golden_batch(const fs::path& folder) {
  std::vector<Sample> samples;
  std::vector<int64_t> ids;
  const Json json = read_json(folder / "batch.json");
  for (const Json& sequence : json.at("sequences")) {
    samples.push_back({sequence.at("ids").get<std::vector<int32_t>>(),
                       sequence.at("targets").get<std::vector<int32_t>>(),
                       {0}});
    ids.push_back(static_cast<int64_t>(ids.size()));
  }
  return make_batch(samples, ids);
}

AttentionPattern golden_pattern(const Json& expected, const std::string& kind) {
  AttentionPattern pattern;
  pattern.first_shifted_head = expected.at("first_shifted_head").at(kind);
  if (kind == "full") return pattern;
  pattern.group_size = expected.at("group_size");
  pattern.wrap = kind == "s2-wrap";
  pattern.num_sinks = kind == "sf" ? expected.at("num_sinks").get<int64_t>() : 0;
  return pattern;
}

struct GoldenModel {
  GoldenModel(const fs::path& folder, const std::string& name, DType compute, int64_t tokens)
      : ops(make_cpu_ops(compute)) {
    const ModelDirectory directory(folder / "base");
    Adapter adapter;
    ModelOptions options;
    options.frozen_dtype = compute;
    if (name == "full_training") {
      options.train_all = true;
    } else {
      adapter = read_adapter(folder / ("adapter_" + name), directory.config());
      options.adapters = adapter_specs(adapter);
      options.train_adapters = true;
      options.train_embeddings = options.train_norms = name == "lora_plus";
    }
    llama = std::make_unique<Llama>(*ops, directory.config(), options,
                                    PassOptions{.max_tokens = tokens,
                                                .max_sequences = tokens,
                                                .max_context = tokens,
                                                .training = true,
                                                .recompute = Recompute::cheap()});
    llama->allocate();
    llama->weights().load(*ops, directory);
    llama->weights().load_adapter(*ops, adapter);
  }
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Llama> llama;
};

// Largest difference over all tensors of max |ours - theirs| / max |theirs|.
double gradient_distance(GoldenModel& model, const SafetensorsFile& golden) {
  double distance = 0;
  for (const Parameter& parameter : model.llama->weights().parameters) {
    if (!parameter.trained()) continue;
    const std::vector<double> theirs = read_f64(golden, parameter.name);
    const auto ours = download_numbers<double>(*model.ops, parameter.weight.gradient);
    REQUIRE(ours.size() == theirs.size());
    double largest = 0, difference = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
      largest = std::max(largest, std::fabs(theirs[i]));
      const double d = std::fabs(ours[i] - theirs[i]);
      if (!(d <= difference)) difference = d;  // NaN stays
    }
    if (!(difference / largest <= distance)) distance = difference / largest;
  }
  return distance;
}

void check_case(const fs::path& folder, const Json& expected, const Json& golden, DType compute) {
  const std::string kind = golden.at("pattern"), name = golden.at("case");
  CAPTURE(name);
  CAPTURE(kind);
  CAPTURE(name_of(compute));
  const Batch batch = golden_batch(folder);
  const auto scored = expected.at("scored_tokens").get<int64_t>();
  REQUIRE(batch.scored_tokens == scored);
  GoldenModel model(folder, name, compute, batch.tokens());
  const AttentionPattern pattern = golden_pattern(expected, kind);
  const double loss = model.llama->accumulate_gradients(batch, pattern, 1.0 / static_cast<double>(scored)) /
                      static_cast<double>(scored);
  const double loss_golden = golden.at("loss");
  // Angles and adapters were rounded to f32 on the way in, in both programs alike.
  CHECK(std::fabs(loss - loss_golden) <= (compute == DType::f64 ? 1e-9 : 1e-6) * loss_golden);
  const SafetensorsFile gradients(folder / golden.at("file").get<std::string>());
  const double distance = gradient_distance(model, gradients);
  CHECK(distance <= (compute == DType::f64 ? 1e-9 : 1e-5));
  const std::vector<double> nll = model.llama->nll(batch, pattern), theirs = read_f64(gradients, "nll");
  for (size_t t = 0; t < nll.size(); ++t)
    CHECK(std::fabs(nll[t] - theirs[t]) <= (compute == DType::f64 ? 1e-9 : 1e-5) * std::max(1.0, theirs[t]));
}

}  // namespace

TEST_CASE("loss and every trainable gradient equal transformers + PEFT, all patterns") {
  for (const std::string name : {"plain", "tied"}) {
    const fs::path folder = golden("model") / name;
    const Json expected = read_json(folder / "expected.json");
    for (const Json& one : expected.at("cases"))
      for (const DType compute : {DType::f64, DType::f32}) check_case(folder, expected, one, compute);
  }
}

TEST_CASE("three AdamW steps follow those of torch, with and without weight decay") {
  const fs::path folder = golden("model") / "plain";
  const Json expected = read_json(folder / "expected.json");
  const Batch batch = golden_batch(folder);
  const double scale = 1.0 / static_cast<double>(batch.scored_tokens);
  for (const Json& run : expected.at("optimizer")) {
    CAPTURE(run.dump());
    GoldenModel model(folder, "lora_plus", DType::f64, batch.tokens());
    const AttentionPattern pattern = golden_pattern(expected, "sf");
    const auto losses = run.at("losses").get<std::vector<double>>();
    const auto norms = run.at("gradient_norms").get<std::vector<double>>();
    for (size_t step = 0; step < norms.size(); ++step) {
      model.llama->zero_gradients();
      const double loss = scale * model.llama->accumulate_gradients(batch, pattern, scale);
      CHECK(loss == doctest::Approx(losses[step]).epsilon(1e-8));
      const double norm = gradient_norm(*model.ops, model.llama->weights());
      CHECK(norm == doctest::Approx(norms[step]).epsilon(1e-8));
      const double clip = run.value("clip", 1.0);
      update_parameters(*model.ops, model.llama->weights(),
                        {run.at("learning_rate"), run.value("beta1", 0.9), run.value("beta2", 0.95),
                         run.value("epsilon", 1e-8), run.at("weight_decay"), static_cast<int64_t>(step) + 1,
                         std::min(1.0, clip / (norm + 1e-6))});
    }
    double sum = 0;
    for (const double x : model.llama->nll(batch, pattern)) sum += x;
    CHECK(scale * sum == doctest::Approx(losses.back()).epsilon(1e-8));
    const SafetensorsFile golden_parameters(folder / run.at("file").get<std::string>());
    for (const Parameter& parameter : model.llama->weights().parameters) {
      if (!parameter.trained()) continue;
      const std::vector<double> theirs = read_f64(golden_parameters, parameter.name);
      const auto ours = download_numbers<double>(*model.ops, parameter.weight.master);
      double difference = 0;
      for (size_t i = 0; i < ours.size(); ++i)
        difference = std::max(difference, std::fabs(ours[i] - theirs[i]));
      CAPTURE(parameter.name);
      CHECK(difference < 1e-7);
    }
  }
}
