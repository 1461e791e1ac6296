#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "test/model/toy_model.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// Largest error of the gradients of `model` against central differences of its loss, over some elements of
// every trained parameter, relative to the larger of the element and the parameter's root mean square.
double gradient_error(ToyModel& model, const Batch& batch, const AttentionPattern& pattern,
                      std::string* worst) {
  constexpr double kStep = 1e-5;  // truncation ~1e-10, cancellation ~1e-16 * loss / step ~ 1e-9
  Llama& llama = model.llama;
  llama.zero_gradients();
  llama.accumulate_gradients(batch, pattern, 1.0);
  const auto loss = [&] {
    double sum = 0;
    for (const double x : llama.nll(batch, pattern)) sum += x;
    return sum;
  };
  double error = 0;
  for (const Parameter& parameter : llama.weights().parameters) {
    if (!parameter.trained()) continue;
    const auto gradient = download_numbers<double>(*model.ops, parameter.weight.gradient);
    auto value = download_numbers<double>(*model.ops, parameter.weight.value);
    double squares = 0;
    for (const double g : gradient) squares += g * g;
    const double scale = std::sqrt(squares / static_cast<double>(gradient.size()));
    REQUIRE(scale > 0);  // every trained parameter is reached
    const RandomStream random(5, parameter.name);
    for (uint64_t k = 0; k < 6; ++k) {
      const size_t i = random.below(k, value.size());
      const double before = value[i];
      value[i] = before + kStep;
      model.ops->upload(parameter.weight.value, value.data());
      const double above = loss();
      value[i] = before - kStep;
      model.ops->upload(parameter.weight.value, value.data());
      const double below = loss();
      value[i] = before;
      model.ops->upload(parameter.weight.value, value.data());
      const double difference = std::fabs((above - below) / (2 * kStep) - gradient[i]);
      const double relative = difference / std::max(std::fabs(gradient[i]), scale);
      if (!(relative <= error)) error = relative, *worst = parameter.name;
    }
  }
  return error;
}

}  // namespace

TEST_CASE("central differences agree with every gradient of a two-layer model, all patterns") {
  const LlamaConfig config = toy_config();
  const Batch batch = toy_batch({23, 14}, config.vocab_size, 1);
  for (const AttentionOptions& attention : all_patterns()) {
    CAPTURE(attention.kind);
    ToyModel model(DType::f64, config, lora_plus(config, {"q", "k", "v", "o", "gate", "up", "down"}),
                   batch.tokens(), Recompute::cheap());
    std::string worst;
    CHECK(gradient_error(model, batch, make_pattern(attention, 23, config.num_heads), &worst) < 1e-6);
    CAPTURE(worst);
  }
}

TEST_CASE("central differences agree in full training, tied and untied") {
  for (const bool tied : {false, true}) {
    LlamaConfig config = toy_config();
    config.tied_embeddings = tied;
    ModelOptions options;
    options.train_all = true;
    const Batch batch = toy_batch({17, 5}, config.vocab_size, 2);
    ToyModel model(DType::f64, config, options, batch.tokens(), Recompute::none());
    std::string worst;
    CHECK(gradient_error(model, batch, make_pattern({}, 17, config.num_heads), &worst) < 1e-6);
    CAPTURE(worst);
  }
}

// Loss and gradients of one pass.
std::pair<double, std::vector<float>> loss_and_gradients(ToyModel& model, const Batch& batch,
                                                         const AttentionPattern& pattern) {
  const double loss = model.llama.accumulate_gradients(batch, pattern, 0.125);
  std::vector<float> all;
  for (const Parameter& parameter : model.llama.weights().parameters) {
    if (!parameter.trained()) continue;
    const auto own = download_numbers<float>(*model.ops, parameter.weight.gradient);
    all.insert(all.end(), own.begin(), own.end());
  }
  return {loss, all};
}

TEST_CASE("what is kept, recomputed or offloaded changes no bit of loss or gradients") {
  LlamaConfig config = toy_config();
  config.num_layers = 5;
  const Batch batch = toy_batch({31, 9, 20}, config.vocab_size, 3);
  const AttentionPattern pattern = make_pattern({}, 31, config.num_heads);
  ModelOptions full;
  full.train_all = true;
  const std::vector<ModelOptions> trainings{lora_plus(config, {"q", "v", "o"}),
                                            lora_plus(config, {"k", "gate", "down"}), full};
  for (const ModelOptions& training : trainings)
    for (const int64_t tile : {kMlpTile, int64_t{60}, int64_t{7}}) {
      CAPTURE(tile);
      // Room for more tokens than the batch has: buffers are longer than what is used of them.
      const auto outcome = [&](const Recompute& recompute) {
        ToyModel model(DType::f32, config, training, batch.tokens() + 5, recompute, tile);
        return loss_and_gradients(model, batch, pattern);
      };
      const auto expected = outcome(Recompute::none());
      std::vector<Recompute> choices{Recompute::cheap(), Recompute::block()};
      const RandomStream random(static_cast<uint64_t>(tile), "recompute");
      for (uint64_t n = 0; n < 6; ++n) {
        Recompute& some = choices.emplace_back();
        for (int i = 0; i < kKeptGroups; ++i)
          some.layers[static_cast<size_t>(i)] = static_cast<int64_t>(random.below(n * kKeptGroups + i, 7));
        some.offload = n % 2 == 0;
      }
      for (const Recompute& recompute : choices) {
        CAPTURE(describe(recompute, config.num_layers));
        const auto [loss, gradients] = outcome(recompute);
        CHECK(loss == expected.first);
        CHECK(gradients == expected.second);
      }
    }
}

TEST_CASE("sequences of a batch do not see each other") {
  const LlamaConfig config = toy_config();
  const Batch together = toy_batch({19, 33, 1, 8}, config.vocab_size, 4);
  ToyModel model(DType::f64, config, {}, together.tokens(), Recompute::none());
  for (const AttentionOptions& attention : all_patterns()) {
    CAPTURE(attention.kind);
    const AttentionPattern pattern = make_pattern(attention, 33, config.num_heads);
    const std::vector<double> all = model.llama.nll(together, pattern);
    for (size_t s = 0; s + 1 < together.offsets.size(); ++s) {
      const auto begin = together.offsets[s], end = together.offsets[s + 1];
      const auto cut = [&](const std::vector<int32_t>& from) {
        return std::vector<int32_t>(from.begin() + begin, from.begin() + end);
      };
      const Batch alone = make_batch({{cut(together.ids), cut(together.targets), {0}}}, {0});
      const std::vector<double> own = model.llama.nll(alone, pattern);
      for (int64_t t = begin; t < end; ++t)
        CHECK(own[static_cast<size_t>(t - begin)] ==
              doctest::Approx(all[static_cast<size_t>(t)]).epsilon(1e-12));
    }
  }
}

TEST_CASE("micro-batches of unequal scored counts add up to the gradient of the whole batch") {
  const LlamaConfig config = toy_config();
  const ModelOptions options = lora_plus(config, {"q", "k", "v", "o"});
  const AttentionPattern pattern = make_pattern({}, 29, config.num_heads);
  const std::vector<int64_t> lengths{29, 3, 12, 21};
  const Batch whole = toy_batch(lengths, config.vocab_size, 6);
  const double scale = 1.0 / static_cast<double>(whole.scored_tokens);
  ToyModel once(DType::f64, config, options, whole.tokens(), Recompute::none());
  once.llama.accumulate_gradients(whole, pattern, scale);
  ToyModel parts(DType::f64, config, options, whole.tokens(), Recompute::none());
  for (size_t s = 0; s + 1 < whole.offsets.size(); ++s) {
    const auto begin = whole.offsets[s], end = whole.offsets[s + 1];
    const auto cut = [&](const std::vector<int32_t>& from) {
      return std::vector<int32_t>(from.begin() + begin, from.begin() + end);
    };
    parts.llama.accumulate_gradients(make_batch({{cut(whole.ids), cut(whole.targets), {0}}}, {0}), pattern,
                                     scale);
  }
  for (size_t i = 0; i < once.llama.weights().parameters.size(); ++i) {
    const Parameter& a = once.llama.weights().parameters[i];
    if (!a.trained()) continue;
    const auto x = download_numbers<double>(*once.ops, a.weight.gradient);
    const auto y = download_numbers<double>(*parts.ops, parts.llama.weights().parameters[i].weight.gradient);
    double largest = 0, difference = 0;
    for (size_t k = 0; k < x.size(); ++k)
      largest = std::max(largest, std::fabs(x[k])), difference = std::max(difference, std::fabs(x[k] - y[k]));
    CAPTURE(a.name);
    CHECK(difference <= 1e-12 * largest);
  }
}

TEST_CASE("new adapters: A is uniform in +-1/sqrt(in), B is zero") {
  LlamaConfig config = toy_config();
  config.intermediate_size = 300;  // of down, not to be mistaken for H = 48
  const auto ops = make_cpu_ops(DType::f32);
  Llama llama(*ops, config, lora_plus(config, {"q", "v", "o", "down"}),
              {.max_tokens = 4, .max_sequences = 1, .max_context = 4, .training = true});
  llama.allocate();
  llama.weights().initialize_adapters(*ops, 3);
  double squares = 0, count = 0;
  std::set<float> firsts;
  for (const Parameter& parameter : llama.weights().parameters) {
    CAPTURE(parameter.name);
    const auto numbers = download_numbers<float>(*ops, parameter.weight.master);
    if (parameter.name.ends_with(".lora_B.weight"))
      CHECK(std::all_of(numbers.begin(), numbers.end(), [](float x) { return x == 0; }));
    if (!parameter.name.ends_with(".lora_A.weight")) continue;
    const double in = parameter.name.find("down_proj") != std::string::npos ? 300 : 48;
    REQUIRE(std::ssize(numbers) == 4 * static_cast<int64_t>(in));
    const auto [least, most] = std::minmax_element(numbers.begin(), numbers.end());
    // Of at least 192 draws, the farthest is within 5 % of either end but for one seed in a hundred.
    const double low = *least * std::sqrt(in), high = *most * std::sqrt(in);
    CHECK(high <= 1 + 1e-6);
    CHECK(high > 0.95);
    CHECK(low >= -1 - 1e-6);
    CHECK(low < -0.95);
    for (const float x : numbers) squares += in * x * x, count += 1;
    firsts.insert(numbers[0]);
  }
  CHECK(firsts.size() == 8);  // each its own draws
  // The variance of a uniform draw; over some 3500 of them its deviation is 1.5 %.
  CHECK(squares / count == doctest::Approx(1.0 / 3).epsilon(0.06));
}
