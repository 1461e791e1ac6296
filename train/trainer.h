// The training loop.
#pragma once

#include "comm/communicator.h"
#include "train/options.h"

namespace sinklora {

// Runs a fine-tune (or a pretraining) to its last step and leaves OUT with checkpoints, metrics.jsonl and
// loss.svg; a file OUT/save-now makes it save. Returns ExitCode::ok, or ExitCode::preempted when a signal
// (TERM, INT, USR1, HUP) made it save and stop.
// Every rank calls it with the same options; rank 0 alone writes and speaks.
ExitCode train(const TrainOptions& options, Ops& ops, Communicator& ranks);

}  // namespace sinklora
