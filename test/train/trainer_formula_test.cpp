// Two steps of train() against their formulas, spelled out in double: which pattern, normalisation, clipping,
// decay and learning rate the loop hands to the parts that other tests hold to torch.
#include <doctest/doctest.h>

#include <cmath>

#include "data/shard_writer.h"
#include "model/llama.h"
#include "test/model/files.h"
#include "test/temporary.h"
#include "test/train/toy_inputs.h"
#include "test/train/train_alone.h"
#include "train/checkpoint.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr uint64_t kSeed = 7;
constexpr int64_t kSteps = 2, kWarmup = 4;
// Far from their defaults. With this epsilon an update depends on the size of its gradient, which Adam's would
// otherwise cancel, clipping and all.
constexpr double kPeak = 1e-2, kBeta1 = 0.8, kBeta2 = 0.9, kEpsilon = 1e-3, kDecay = 0.5, kClip = 0.05;

// Rows of unequal lengths and unequal shares of scored tokens, as a shard and as what is to become of it.
Batch write_unequal_rows(const std::filesystem::path& path) {
  ShardInfo info;
  info.context = kContext;
  info.vocab_size = kVocab;
  ShardWriter writer(path, info);
  std::vector<Sample> samples;
  for (const auto& [length, prompt] : {std::pair{24, 1}, {5, 3}, {17, 12}, {23, 21}}) {
    TokenRow row;
    row.document_starts = {0};
    for (int32_t t = 0; t < length; ++t) {
      row.ids.push_back((t * t + 3 * length) % kVocab);
      row.scored.push_back(t >= prompt);
    }
    writer.append(row);
    Sample sample{row.ids, {}, {0}};
    for (size_t next = 1; next <= row.ids.size(); ++next)
      sample.targets.push_back(next < row.ids.size() && row.scored[next] ? row.ids[next] : kNotScored);
    samples.push_back(sample);
  }
  writer.finish();
  return make_batch(samples, {0, 1, 2, 3});
}

// The moments of a parameter, beside its values in the model.
struct Moments {
  std::vector<double> m, v;
};

// Decoupled weight decay, as in AdamW; norms have none.
void update(const Parameter& parameter, Moments& moments, double rate, double clip, int64_t step) {
  auto* w = parameter.weight.value.as<double>();
  const auto* gradient = parameter.weight.gradient.as<double>();
  const double decay = parameter.name.ends_with("norm.weight") ? 0 : kDecay;
  const double correction1 = 1 - std::pow(kBeta1, step), correction2 = 1 - std::pow(kBeta2, step);
  for (size_t i = 0; i < moments.m.size(); ++i) {
    const double g = clip * gradient[i];
    double &m = moments.m[i], &v = moments.v[i];
    m = kBeta1 * m + (1 - kBeta1) * g;
    v = kBeta2 * v + (1 - kBeta2) * g * g;
    w[i] -= rate * (decay * w[i] + m / correction1 / (std::sqrt(v / correction2) + kEpsilon));
  }
}

// Of a tensor in f32 from one in double, relative to the latter.
double distance(const std::vector<float>& found, const double* expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += (expected[i] - found[i]) * (expected[i] - found[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace

TEST_CASE("steps of train() are their formulas, however the samples are split into passes") {
  const TemporaryDirectory folder(memory_folder());
  write_toy_config(folder / "model");
  const Batch all = write_unequal_rows(folder / "rows.h5");
  const auto scored = static_cast<double>(all.scored_tokens);
  struct Kind {
    std::string name;
    AttentionPattern pattern;  // of 4 heads and a context of 24, by the defaults of AttentionOptions
  };
  const Kind kinds[] = {{"sf", {6, 3, 4, false}},
                        {"s2", {6, 2, 0, false}},
                        {"s2-wrap", {6, 2, 0, true}},
                        {"fixed", {6, 4, 0, false}},
                        {"full", {0, 4, 0, false}}};
  const std::pair<int64_t, int64_t> splits[] = {{4, 1}, {1, 4}, {2, 2}};
  for (const auto& [name, pattern] : kinds) {
    CAPTURE(name);
    const auto out = [&](int64_t batch) { return folder / (name + std::to_string(batch)); };
    for (const auto& [batch, accumulate] : splits) {
      TrainOptions o;
      o.model = folder / "model", o.data = folder / "rows.h5", o.out = out(batch);
      o.init = "random", o.trainable = "full", o.attention.kind = name, o.seed = kSeed;
      o.context = kContext, o.batch = batch, o.accumulate = accumulate, o.steps = kSteps;
      o.learning_rate = kPeak, o.warmup = kWarmup, o.grad_clip = kClip;
      o.beta1 = kBeta1, o.beta2 = kBeta2, o.epsilon = kEpsilon, o.weight_decay = kDecay;
      o.save_every = 1, o.keep_last = 0, o.quiet = true;
      REQUIRE(train(o) == ExitCode::ok);
    }

    const auto ops = make_cpu_ops(DType::f64);
    ModelOptions trains_all;
    trains_all.train_all = true;
    Llama llama(*ops, read_config(folder / "model"), trains_all,
                {.max_tokens = all.tokens(), .max_sequences = 4, .max_context = kContext, .training = true});
    llama.allocate();
    llama.weights().initialize(*ops, kSeed);
    std::vector<Moments> moments;
    for (const Parameter& p : llama.weights().parameters)
      moments.push_back({std::vector<double>(static_cast<size_t>(p.weight.value.size())),
                         std::vector<double>(static_cast<size_t>(p.weight.value.size()))});
    for (int64_t step = 1; step <= kSteps; ++step) {
      CAPTURE(step);
      llama.zero_gradients();
      const double loss = llama.accumulate_gradients(all, pattern, 1 / scored) / scored;
      double squares = 0;
      for (const Parameter& p : llama.weights().parameters)
        for (const double g : download_numbers<double>(*ops, p.weight.gradient)) squares += g * g;
      const double norm = std::sqrt(squares), rate = kPeak * static_cast<double>(step) / kWarmup;
      REQUIRE(norm > 2 * kClip);  // it clips
      for (size_t i = 0; i < moments.size(); ++i)
        update(llama.weights().parameters[i], moments[i], rate, kClip / (norm + 1e-6), step);

      for (const auto& [batch, accumulate] : splits) {
        CAPTURE(batch);
        std::ifstream log(out(batch) / "metrics.jsonl");
        std::string line;
        for (int64_t l = 0; l < step; ++l) REQUIRE(std::getline(log, line));
        const Json metrics = parse_json(line, "metrics");
        // The run computes in f32: its loss and norm are within 2e-8, weights within 6e-8 (their rounding) and
        // moments within 8e-7. The bounds leave ten times that to other orders of sums; a wrong loop is off by
        // 1e-4 and more.
        CHECK(metrics.at("loss").get<double>() == doctest::Approx(loss).epsilon(1e-6));
        CHECK(metrics.at("grad_norm").get<double>() == doctest::Approx(norm).epsilon(1e-5));
        CHECK(metrics.at("lr").get<double>() == doctest::Approx(rate).epsilon(1e-12));
        const std::filesystem::path checkpoint = out(batch) / step_directory_name(step);
        const SafetensorsFile weights(checkpoint / "model.safetensors"),
            kept(checkpoint / "optimizer.safetensors");
        for (size_t i = 0; i < moments.size(); ++i) {
          const Parameter& p = llama.weights().parameters[i];
          CAPTURE(p.name);
          CHECK(distance(floats_of(weights, p.name), p.weight.value.as<double>()) < 1e-6);
          CHECK(distance(floats_of(kept, p.name + ".exp_avg"), moments[i].m.data()) < 1e-5);
          CHECK(distance(floats_of(kept, p.name + ".exp_avg_sq"), moments[i].v.data()) < 1e-5);
        }
      }
    }
  }
}
