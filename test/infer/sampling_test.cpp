#include "infer/sampling.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "test/temporary.h"

using namespace sinklora;

TEST_CASE("probabilities equal those that transformers samples from") {
  const Json golden = read_json(test::golden("sampling.json"));
  const auto logits = golden.at("logits").get<std::vector<float>>();
  const auto text = golden.at("text").get<std::vector<int32_t>>();
  // transformers works in float32: dividing by penalty and temperature moves a score of at most 16 by two
  // roundings of 16 * 2^-24, and the sum of the softmax as much again; the exponential adds a few 2^-24.
  const double tolerance = (2 * 2 * 16 + 8) * std::ldexp(1.0, -24);
  for (const Json& wanted : golden.at("cases")) {
    CAPTURE(wanted.at("processors").dump());
    Sampler sampler({.temperature = wanted.at("temperature"),
                     .top_k = wanted.value("top_k", int64_t{0}),
                     .top_p = wanted.value("top_p", 1.0),
                     .repetition_penalty = wanted.value("repetition_penalty", 1.0)});
    sampler.see(text);
    const std::vector<double> found = sampler.probabilities(logits);
    const auto expected = wanted.at("probabilities").get<std::vector<double>>();
    REQUIRE(found.size() == expected.size());
    for (size_t id = 0; id < found.size(); ++id) {
      CAPTURE(id);
      CHECK(std::abs(found[id] - expected[id]) <= tolerance * expected[id]);
    }
  }
}

TEST_CASE("greedy takes the lowest id among equals, and the penalty moves it on") {
  const std::vector<float> logits{1, 4, 4, -2};
  CHECK(Sampler({}).next(logits) == 1);
  Sampler sampler({.repetition_penalty = 5});
  CHECK(sampler.next(logits) == 1);
  CHECK(sampler.next(logits) == 2);  // 4 / 5 < 4
  CHECK(sampler.next(logits) == 0);  // 1 > 4 / 5
  CHECK(sampler.next(logits) == 1);  // 1 / 5 < 4 / 5
  sampler.reset();
  CHECK(sampler.next(logits) == 1);
  Sampler negative({.repetition_penalty = 2});
  negative.see(std::vector<int32_t>{0});
  CHECK(negative.next(std::vector<float>{-1, -1.5f}) == 1);  // -2 < -1.5
}

TEST_CASE("top-p keeps the lowest ids among equals") {
  const std::vector<double> half =
      Sampler({.temperature = 1, .top_p = 0.5}).probabilities(std::vector<float>{0, 0, 0, 0});
  CHECK(half == std::vector<double>{0.5, 0.5, 0, 0});
}

TEST_CASE("top-p keeps the fewest likeliest tokens that reach p, in a large vocabulary too") {
  const RandomStream random(7, "logits");
  std::vector<float> logits(5003);
  for (size_t id = 0; id < logits.size(); ++id) logits[id] = static_cast<float>(3 * random.normal(id));
  const std::vector<double> all = Sampler({.temperature = 1}).probabilities(logits);
  std::vector<double> sorted = all;
  std::sort(sorted.rbegin(), sorted.rend());
  for (const double p : {0.001, 0.3, 0.9, 0.999, 0.9999999}) {
    CAPTURE(p);
    size_t fewest = 0;
    for (double mass = 0; mass < p; ++fewest) mass += sorted[fewest];
    const std::vector<double> found = Sampler({.temperature = 1, .top_p = p}).probabilities(logits);
    size_t kept = 0;
    for (size_t id = 0; id < found.size(); ++id) {
      CHECK((found[id] > 0) == (all[id] >= sorted[fewest - 1]));
      kept += found[id] > 0;
    }
    CHECK(kept == fewest);
  }
}

TEST_CASE("draws follow the probabilities, and the seed alone") {
  const std::vector<float> logits{std::log(0.5f), std::log(0.2f), std::log(0.3f)};
  const auto draw = [&](uint64_t seed, int count) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back(sampler.next(logits));
    return ids;
  };
  CHECK(draw(1, 50) == draw(1, 50));
  CHECK(draw(1, 50) != draw(2, 50));
  constexpr int kDraws = 20'000;
  std::map<int32_t, int> counts;
  for (const int32_t id : draw(3, kDraws)) ++counts[id];
  for (const auto& [id, share] : std::map<int32_t, double>{{0, 0.5}, {1, 0.2}, {2, 0.3}}) {
    CAPTURE(id);
    const double deviation = std::sqrt(share * (1 - share) / kDraws);
    CHECK(std::abs(static_cast<double>(counts[id]) / kDraws - share) < 4 * deviation);
  }
}

TEST_CASE("settings out of range and logits that are no numbers are refused") {
  CHECK_THROWS_AS(Sampler({.temperature = -1}), Error);
  CHECK_THROWS_AS(Sampler({.temperature = NAN}), Error);
  CHECK_THROWS_AS(Sampler({.top_k = -1}), Error);
  CHECK_THROWS_AS(Sampler({.top_p = 0}), Error);
  CHECK_THROWS_AS(Sampler({.top_p = 1.1}), Error);
  CHECK_THROWS_AS(Sampler({.repetition_penalty = 0}), Error);
  CHECK_THROWS_AS(Sampler({}).next(std::vector<float>{0, NAN}), Error);
  CHECK_THROWS_AS(Sampler({.temperature = 1}).next(std::vector<float>{INFINITY, 0}), Error);
}
