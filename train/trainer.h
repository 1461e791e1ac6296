// The training loop.
#pragma once

#include "train/options.h"

namespace sinklora {

// Runs a fine-tune (or a pretraining) to its last step and leaves OUT with checkpoints, metrics.jsonl and
// loss.svg. Returns ExitCode::ok, or ExitCode::preempted when a signal (TERM, INT, USR1) made it save and
// stop.
ExitCode train(const TrainOptions& options);

// One line of the memory table of a run.
struct MemoryLine {
  std::string what;
  int64_t bytes = 0;
};
struct MemoryPlan {
  std::vector<MemoryLine> lines;
  Recompute recompute = Recompute::none;  // in force
  int64_t total = 0, available = 0;
  bool fits() const { return total <= available; }
};
// What train() would allocate; --recompute auto takes the least recompute that fits.
MemoryPlan plan_memory(const TrainOptions& options);
// The same for options that are resolved and a backend that is there already.
MemoryPlan plan_memory(const TrainOptions& options, const TrainSetup& setup, Ops& ops);
// The longest context, in steps of 256 tokens, at which the run still fits; 0: none.
int64_t longest_context(TrainOptions options);

}  // namespace sinklora
