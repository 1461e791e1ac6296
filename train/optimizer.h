// One AdamW update of the trained parameters, and the learning-rate schedule.
#pragma once

#include <string>

#include "model/weights.h"

namespace sinklora {

// Global 2-norm of all gradients, in f64.
double gradient_norm(Ops& ops, const Weights& weights);

// Updates every trained parameter; weight decay leaves norms out.
void update_parameters(Ops& ops, const Weights& weights, const AdamWStep& step);

// lr of step `step` (1 for the first): linear warm-up to `peak` over `warmup` steps, then constant, or a
// cosine or a line down to 0 at step `steps`. Skipped steps count.
double learning_rate(const std::string& schedule, double peak, int64_t step, int64_t warmup, int64_t steps);

}  // namespace sinklora
