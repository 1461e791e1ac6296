#include "infer/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace sinklora {
namespace {

constexpr double kRemoved = -INFINITY;

size_t likeliest(const std::vector<double>& logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed, "generate") {
  if (!(options.temperature >= 0 && options.temperature <= 100))
    fail_usage("--temperature {} is not in [0, 100]", options.temperature);
  if (options.top_k < 0) fail_usage("--top-k {} is negative; 0 keeps all tokens", options.top_k);
  if (!(options.top_p > 0 && options.top_p <= 1))
    fail_usage("--top-p {} is not in (0, 1]; 1 keeps all tokens", options.top_p);
  if (!(options.repetition_penalty > 0 && options.repetition_penalty <= 100))
    fail_usage("--repetition-penalty {} is not in (0, 100]; 1 is none", options.repetition_penalty);
}

void Sampler::see(std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (static_cast<size_t>(id) >= seen_.size()) seen_.resize(static_cast<size_t>(id) + 1);
    seen_[static_cast<size_t>(id)] = true;
  }
}

void Sampler::reset() {
  seen_.clear();
  draws_ = 0;
}

std::vector<double> Sampler::penalized(std::span<const float> logits) const {
  std::vector<double> result(logits.begin(), logits.end());
  for (size_t id = 0; id < result.size(); ++id)
    if (!(result[id] < INFINITY))
      fail(
          ExitCode::non_finite,
          "the logit of token {} is {}: the model's weights or its adapter are damaged, or were trained into "
          "overflow; check them with `sinklora verify`",
          id, result[id]);
  if (options_.repetition_penalty != 1)
    for (size_t id = 0; id < std::min(result.size(), seen_.size()); ++id)
      if (seen_[id])
        result[id] = result[id] < 0 ? result[id] * options_.repetition_penalty
                                    : result[id] / options_.repetition_penalty;
  return result;
}

void Sampler::keep_top_k(std::vector<double>& logits) const {
  const auto k = static_cast<size_t>(options_.top_k);
  if (k == 0 || k >= logits.size()) return;
  std::vector<double> order = logits;
  std::nth_element(order.begin(), order.begin() + static_cast<int64_t>(k - 1), order.end(), std::greater<>());
  for (double& logit : logits)
    if (logit < order[k - 1]) logit = kRemoved;
}

// A token stays when those before it, likeliest first and lowest id first among equals, have less than top_p.
void Sampler::keep_top_p(std::vector<double>& weights) const {
  if (options_.top_p == 1) return;
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  // All tokens below this have less than half of what lies beyond top_p: they need no sorting, which for a
  // large vocabulary would take longer than the model.
  const double negligible = (1 - options_.top_p) * sum / (2 * static_cast<double>(weights.size()));
  std::vector<uint32_t> order;
  for (uint32_t id = 0; id < weights.size(); ++id)
    if (weights[id] < negligible)
      weights[id] = 0;
    else
      order.push_back(id);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return weights[a] > weights[b]; });
  double before = 0;
  for (const uint32_t id : order) {
    const double weight = weights[id];
    if (before >= options_.top_p * sum) weights[id] = 0;
    before += weight;
  }
}

std::vector<double> Sampler::probabilities(std::span<const float> logits) const {
  std::vector<double> result = penalized(logits);
  const size_t best = likeliest(result);
  if (options_.temperature == 0) {
    std::fill(result.begin(), result.end(), 0);
    result[best] = 1;
    return result;
  }
  keep_top_k(result);  // temperature comes first in transformers, and changes no order
  const double highest = result[best];
  for (double& value : result) value = std::exp((value - highest) / options_.temperature);
  keep_top_p(result);
  const double sum = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& value : result) value /= sum;
  return result;
}

int32_t Sampler::next(std::span<const float> logits) {
  if (logits.empty()) fail_internal("sampling from no logits");
  int32_t chosen = -1;
  if (options_.temperature == 0) {
    chosen = static_cast<int32_t>(likeliest(penalized(logits)));
  } else {
    const std::vector<double> share = probabilities(logits);
    double left = random_.uniform(draws_++);
    for (size_t id = 0; id < share.size() && left >= 0; ++id) {
      if (share[id] == 0) continue;
      chosen = static_cast<int32_t>(id);  // rounding can leave a little after the last
      left -= share[id];
    }
  }
  see(std::span(&chosen, 1));
  return chosen;
}

}  // namespace sinklora
