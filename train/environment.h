// What a report of a problem should hold, and what is kept beside every run.
#pragma once

#include "base/json.h"

namespace sinklora {

// Versions, machine, GPUs, and the settings in force: {"sinklora","commit","compiler","hdf5","openblas","cpu",
// "cpu_features","cpus","openmp_threads","memory_bytes","available_memory_bytes","free_disk_bytes","cuda",
// "gpus","nccl","settings"}. "gpus" is a list of descriptions.
Json environment();

}  // namespace sinklora
