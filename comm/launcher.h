// Starts the ranks of one machine as processes and stays with them. Rank 0 has this process's output; lines
// of the others come with "[rank N] " before them. SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed
// on. When a rank fails, the others have the grace period to end by themselves (their communicators tell them
// who failed) and are killed then; when this process dies, the kernel kills all.
#pragma once

#include <string>
#include <vector>

namespace sinklora {

struct Launch {
  std::vector<std::string> command;  // program (a path) and arguments
  int ranks = 1;
  double grace_s = 15;
};

// Call it from the main thread of a process that has started no other yet. Returns 0 when all ranks ended
// with 0, the exit code of the first that failed (128 + signal where one ended it), or 75 where ranks saved
// on a signal and none failed. The ranks find each other by SINKLORA_* variables (launch_environment.h).
int launch_ranks(const Launch& launch);

}  // namespace sinklora
