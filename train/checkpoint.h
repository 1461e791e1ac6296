// Checkpoints: OUT/step-00000500/ holds everything to go on, and is itself a valid PEFT adapter (or, after
// full training, a Hugging Face model).
#pragma once

#include <filesystem>
#include <optional>

#include "train/options.h"

namespace sinklora {

struct TrainState {
  int64_t step = 0;           // steps done, skipped ones too
  int64_t position = 0;       // samples consumed, in the loader's global order
  int64_t tokens = 0;         // tokens seen
  int64_t updates = 0;        // steps that were not skipped: the count of AdamW's bias correction
  int64_t planned_steps = 0;  // of the whole run, by which its schedule went; 0: not known
};

// Written into a temporary folder, flushed, checksummed and renamed, in exchange for one of this step if
// there is any. Throws Error(input) where the disk is full or fails; no other checkpoint is touched then.
void save_checkpoint(const TrainOptions& options, Ops& ops, const Weights& weights, const LlamaConfig& config,
                     const TrainState& state, const Json& fingerprint);

// After a save, and before going on, as a kill may have come between the two: OUT/latest names the checkpoint of
// `step`, and of those up to it the `keep_last` newest stay. What lies between it and `before`, the whole one that
// it goes on from, is damaged: that takes no place of theirs, and goes.
void settle_checkpoints(const TrainOptions& options, int64_t before, int64_t step);

// Throws Error(input) when the disk has no room for one more.
void expect_room_for_checkpoint(const TrainOptions& options, const Weights& weights);

// Removes what a run that was killed while saving has left in OUT.
void remove_unfinished(const std::filesystem::path& out);

// The newest checkpoint of OUT whose checksums verify; says on stderr why it skips others. None: nullopt.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& out);

// Where a run begins: at `from`, or anew where that is none. `newest` is what newest_checkpoint() says of OUT.
struct Beginning {
  std::optional<std::filesystem::path> from, newest;
};
// What --resume means. A run that began with another's checkpoint goes on, by the same command, with its own. Throws
// Error(usage) where OUT holds a run that did not begin with the one that is named, or one that began with another's
// and has none of its own, and would begin anew by auto; Error(input) where none is whole.
Beginning find_beginning(const TrainOptions& options);
// Once `from` is loaded, and before the first step.
void note_beginning(const TrainOptions& options, const Beginning& beginning);

bool holds_checkpoints(const std::filesystem::path& out);  // whole ones or not
bool holds_run(const std::filesystem::path& out);          // those, or metrics

// Puts weights and moments in place. Throws Error(usage) naming the option that differs from the saved run's.
TrainState load_checkpoint(const std::filesystem::path& checkpoint, Ops& ops, Weights& weights,
                           const LlamaConfig& config, const Json& fingerprint);

// What PEFT must be told of the run's adapters, as a line; "" for nothing.
std::string note_for_peft(const TrainOptions& options, const LlamaConfig& config);

std::string step_directory_name(int64_t step);            // "step-00000500"
int64_t step_of(const std::filesystem::path& directory);  // the other way; -1: it is named otherwise

}  // namespace sinklora
