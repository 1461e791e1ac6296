// Work as one process, as processes that it starts itself, or as a rank that a launcher started.
#pragma once

#include <functional>

#include "comm/communicator.h"
#include "train/options.h"

namespace sinklora {

struct RankOptions {
  std::string device = "cpu", precision = "fp32";
  std::string gpus = "1";  // processes to start on this machine, or "all"
  double timeout_s = 600;  // that ranks wait for one another
  bool quiet = false;      // do not say which launcher was found
};

// What a rank has to work with.
struct RankPlace {
  std::unique_ptr<Ops>& ops;  // work may wrap it
  Communicator& ranks;
  int device_index;     // its GPU
  int processes_here;   // that share this machine's memory
  int64_t free_memory;  // bytes of the device before this rank took any
};
using RankWork = std::function<ExitCode(const RankPlace&)>;

// Under a launcher (comm/launch_environment.h) joins the ranks that it started and does `work` as one of
// them; else starts options.gpus processes of this program with this command line and stays with them, or
// does the work here where that is one. Returns the program's exit code.
int run_on_ranks(const RankOptions& options, const RankWork& work);

// As the only rank, in this process.
ExitCode work_alone(const RankOptions& options, const RankWork& work);

// train() (train/trainer.h) on ranks.
int train_on_ranks(const TrainOptions& options);

}  // namespace sinklora
