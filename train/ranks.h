// `train` as one process, as processes that it starts itself, or as a rank that a launcher started.
#pragma once

#include "train/options.h"

namespace sinklora {

// Under a launcher (comm/launch_environment.h) joins the ranks that it started; else starts --gpus processes
// of this program with this command line and stays with them, or trains here where that is one. Returns the
// program's exit code.
int train_on_ranks(TrainOptions options);

}  // namespace sinklora
