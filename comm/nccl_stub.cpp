// Stands in for NCCL in builds without CUDA or without NCCL.
#include "base/error.h"
#include "comm/nccl_communicator.h"

namespace sinklora {

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<TcpCommunicator>, int, void*,
                                                     const CommunicatorOptions&) {
  fail_usage("several GPUs: this build has no NCCL; install libnccl-dev and build with CUDA, or use one GPU");
}

std::string nccl_version() { return "not built"; }

}  // namespace sinklora
