#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sinklora {

// Padding between tensors is 0 and stays 0: it adds nothing to the norm, and its update is 0.
double gradient_norm(Ops& ops, const Weights& weights) {
  const Tensor all = weights.gradients.whole();
  return all ? std::sqrt(ops.sum_of_squares(all)) : 0.0;
}

void update_parameters(Ops& ops, const Weights& weights, const AdamWStep& step) {
  if (step.weight_decay == 0 && weights.gradients.bytes() > 0) {  // then all elements are treated alike
    const Tensor masters = weights.trained.whole(), rounded = weights.rounded.whole();
    return ops.adamw(rounded ? rounded : masters, masters, weights.gradients.whole(),
                     weights.first_moments.whole(), weights.second_moments.whole(), step);
  }
  for (const Parameter& parameter : weights.parameters) {
    if (!parameter.trained()) continue;
    AdamWStep own = step;
    if (!parameter.decays) own.weight_decay = 0;
    const Weight& w = parameter.weight;
    ops.adamw(w.value, w.master, w.gradient, w.m, w.v, own);
  }
}

double learning_rate(const std::string& schedule, double peak, int64_t step, int64_t warmup, int64_t steps) {
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  if (schedule == "constant") return peak;
  const double left = static_cast<double>(std::max<int64_t>(0, steps - step)) /
                      static_cast<double>(std::max<int64_t>(1, steps - warmup));
  if (schedule == "linear") return peak * left;
  if (schedule == "cosine") return peak * 0.5 * (1 - std::cos(std::numbers::pi * left));
  fail_usage("--schedule {}: choose constant, cosine or linear", schedule);
}

}  // namespace sinklora
