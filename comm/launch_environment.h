// Which launcher started this process, and as which rank: read from the variables that launchers set.
#pragma once

#include <map>
#include <string>

#include "comm/rendezvous.h"

namespace sinklora {

struct LaunchEnvironment {
  std::string launcher = "none";  // "sinklora", "torchrun", "Open MPI", "Hydra", "Slurm"
  int rank = 0, world_size = 1;
  int local_rank = 0;        // -1: the launcher does not say
  int local_world_size = 1;  // -1: the launcher does not say
  std::string init;          // where rank 0 is (rendezvous.h); empty: must be given
  std::string nonce;         // differs between runs as far as the launcher has a name for them
  int listen_descriptor = -1;
  std::string
      description;  // one line for the log: "Slurm: rank 3 of 8 (SLURM_PROCID, SLURM_NTASKS), local rank 1"
};

using Variables = std::map<std::string, std::string>;
Variables process_variables();

// The innermost launcher counts: our own, torchrun, Open MPI, Hydra (MPICH, Intel MPI), Slurm. Throws
// Error(usage) naming the variable where one is missing, no number, out of range, or where two launchers
// contradict. SINKLORA_INIT and SINKLORA_NONCE overrule what was derived.
LaunchEnvironment detect_launch(const Variables& variables);

// Where and as whom the process meets the others. `version`: of the program. Throws Error(usage) where the
// launcher does not tell the place.
Rendezvous rendezvous_of(const LaunchEnvironment& launch, const std::string& version);

// "gpu[003-005,9],login" -> "gpu003"
std::string first_slurm_host(const std::string& node_list);

}  // namespace sinklora
