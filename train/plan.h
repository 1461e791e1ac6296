// The memory of a run, before it allocates any: what it takes, and what fits.
#pragma once

#include "model/llama.h"
#include "train/options.h"

namespace sinklora {

// One line of the table that `plan` prints.
struct MemoryLine {
  std::string what;
  int64_t bytes = 0;
};
struct MemoryPlan {
  std::vector<MemoryLine> lines;
  Recompute recompute;                         // in force
  int64_t total = 0, available = 0;            // of the device
  int64_t host_total = 0, host_available = 0;  // page-locked memory for block inputs
  bool fits() const { return total <= available && host_total <= host_available; }
};
// What keeping a group saves and costs, a token and layer.
struct KeptChoice {
  Kept group;
  double bytes;       // kept
  double operations;  // to compute it again, traffic counted as operations
  double cost() const { return operations / bytes; }
};
// All groups, cheapest to compute again per byte first.
std::vector<KeptChoice> kept_choices(const TrainOptions& options, const TrainSetup& setup);

// What train() would allocate. --recompute auto keeps what fits: it drops the groups that are cheapest to
// compute again per byte first, layer by layer, and offloads block inputs before it computes GEMMs again.
MemoryPlan plan_memory(const TrainOptions& options);
// The same for options that are resolved and a backend that is there already.
MemoryPlan plan_memory(const TrainOptions& options, const TrainSetup& setup, Ops& ops);
// What memory is laid out for.
PassOptions pass_options(const TrainOptions& options, const TrainSetup& setup, const Recompute& recompute);
// The longest context, in steps of 256 tokens, at which the run still fits; 0: none.
int64_t longest_context(TrainOptions options);

}  // namespace sinklora
