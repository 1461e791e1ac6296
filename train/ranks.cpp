#include "train/ranks.h"

#include <stdlib.h>

#include <algorithm>
#include <fstream>

#include "base/child.h"
#include "base/machine.h"
#include "comm/launch_environment.h"
#include "comm/launcher.h"
#include "comm/nccl_communicator.h"
#include "kernels/backend.h"
#include "train/trainer.h"

namespace sinklora {
namespace {

constexpr double kSilence =
    60;  // seconds; heartbeats come from a thread of their own, so that loading counts not
constexpr double kGrace = 30;

// The command line that started this process.
std::vector<std::string> own_command() {
  std::vector<std::string> words;
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  if (words.empty()) fail_internal("/proc/self/cmdline cannot be read");
  words[0] = std::filesystem::read_symlink("/proc/self/exe").string();
  return words;
}

// Counted in a process of its own: CUDA starts threads, and one of them could take the launcher's signals.
int devices_of(const std::string& device) {
  const ChildResult counted = run_in_child([&] { return std::to_string(device_count(device)); });
  const int count = counted.ok ? std::stoi(counted.text) : 0;
  return count > 0 ? count : device_count(device);  // says why there is none
}

int start_ranks(const RankOptions& options, const RankWork& work) {
  int ranks = options.gpus == "1" ? device_count(options.device) : devices_of(options.device);
  if (options.gpus != "all") {
    const int wanted = std::stoi(options.gpus);
    if (options.device == "cuda" && wanted > ranks)
      fail_usage("--gpus {}: this machine shows {}; use fewer, or --gpus all", wanted, ranks);
    ranks = wanted;
  }
  if (ranks == 1) return static_cast<int>(work_alone(options, work));
  // Unless the user has said otherwise the ranks share the cores evenly.
  const int64_t threads = std::max<int64_t>(1, look_at_machine().cpus / ranks);
  ::setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), 0);
  return launch_ranks({own_command(), ranks});
}

// A launcher may show each of its processes one GPU only, and then that is number 0.
int own_gpu(const LaunchEnvironment& launch) {
  const int count = device_count("cuda");
  return (launch.local_rank < 0 ? launch.rank : launch.local_rank) % count;
}

ExitCode join_ranks(const RankOptions& options, const LaunchEnvironment& launch, const RankWork& work) {
  CommunicatorOptions waits;
  waits.timeout_s = options.timeout_s;
  waits.silence_s = std::min(kSilence, options.timeout_s);
  waits.grace_s = kGrace;
  Rendezvous meeting = rendezvous_of(launch, SINKLORA_VERSION);
  meeting.timeout_s = std::min(meeting.timeout_s, options.timeout_s);
  auto host = make_tcp_communicator(meeting, waits);
  std::unique_ptr<Ops> ops;
  int device_index = 0, processes_here = 1;
  int64_t free_memory = 0;
  try {
    if (options.device == "cuda") device_index = own_gpu(launch);
    // A launcher that does not say: as many as there are GPUs.
    processes_here = launch.local_world_size > 0 ? launch.local_world_size
                                                 : std::min(launch.world_size, device_count(options.device));
    free_memory = available_memory(options.device, device_index);
    ops = make_ops(options.device, options.precision, device_index);
  } catch (const std::exception& error) {
    host->abort(error.what());
    throw;
  }
  std::unique_ptr<Communicator> ranks;
  if (options.device == "cuda")
    ranks = make_nccl_communicator(std::move(host), device_index, ops->native_stream(), waits);
  else
    ranks = std::move(host);
  return work({ops, *ranks, device_index, processes_here, free_memory});
}

}  // namespace

ExitCode work_alone(const RankOptions& options, const RankWork& work) {
  const int64_t free_memory = available_memory(options.device);
  auto ops = make_ops(options.device, options.precision);
  const auto alone = make_single_communicator();
  return work({ops, *alone, 0, 1, free_memory});
}

int run_on_ranks(const RankOptions& options, const RankWork& work) {
  const LaunchEnvironment launch = detect_launch(process_variables());
  if (launch.launcher == "none") return start_ranks(options, work);
  if (options.gpus != "all" && options.gpus != "1" && launch.local_world_size > 0 &&
      std::stoi(options.gpus) != launch.local_world_size)
    fail_usage("--gpus {}: {} has started {} processes on this machine; leave --gpus away", options.gpus,
               launch.launcher, launch.local_world_size);
  if (launch.rank == 0 && !options.quiet) fmt::print("launched   {}\n", launch.description);
  return static_cast<int>(launch.world_size == 1 ? work_alone(options, work)
                                                 : join_ranks(options, launch, work));
}

int train_on_ranks(const TrainOptions& options) {
  return run_on_ranks({options.device, options.precision, options.gpus, options.rank_timeout, options.quiet},
                      [&](const RankPlace& place) {
                        TrainOptions mine = options;
                        mine.device_index = place.device_index;
                        mine.processes_here = place.processes_here;
                        mine.free_memory = place.free_memory;
                        return train(mine, *place.ops, place.ranks);
                      });
}

}  // namespace sinklora
