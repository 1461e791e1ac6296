// What a verb does as one process or as several, as --gpus or a launcher says.
#pragma once

#include <CLI/CLI.hpp>

#include "train/ranks.h"

namespace sinklora {

// Ends the program with the exit code of `work` where that is not 0.
inline void work_on_ranks(const RankOptions& options, const RankWork& work) {
  if (const int code = run_on_ranks(options, work); code != 0) throw CLI::RuntimeError(code);
}

}  // namespace sinklora
