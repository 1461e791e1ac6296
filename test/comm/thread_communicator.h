// Ranks that are threads of one process, on host memory: data parallelism, agreement and failures without
// GPUs, sockets or a launcher.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace sinklora::test {

// One communicator per rank; each is used and destroyed by the thread that is that rank.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int world_size,
                                                                     const CommunicatorOptions& options);

}  // namespace sinklora::test
