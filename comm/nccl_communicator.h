// Ranks with a GPU each: NCCL on device memory, TCP for what is on the host.
#pragma once

#include <memory>
#include <string>

#include "comm/tcp_communicator.h"

namespace sinklora {

// `compute_stream` is the cudaStream_t in which the run's kernels are enqueued: calls are ordered behind what
// it holds when they start, and wait() makes it wait, not the host. Two ranks on one GPU are refused.
//
// NCCL_ALGO is set to Ring unless the environment says otherwise: rings have a fixed order of summation on
// given machines and bucket sizes; trees and NVLS do not promise one.
//
// The communicator is non-blocking: a thread asks it for errors and the events of its calls for their end. On
// a verdict of the watchdog ncclCommAbort runs on a thread of its own, because it may hang; kernels that wait
// for a dead peer end with it, and where they do not, options.grace_s ends the process.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<TcpCommunicator> host, int device,
                                                     void* compute_stream,
                                                     const CommunicatorOptions& options);

std::string nccl_version();  // of the library in use; "not built"

}  // namespace sinklora
