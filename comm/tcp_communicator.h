// Ranks that are processes, on one machine or many, over TCP on host memory: data parallelism without GPUs,
// and the host side of the NCCL communicator.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/rendezvous.h"

namespace sinklora {

class Watchdog;
class FlightRecord;

class TcpCommunicator : public Communicator {
 public:
  // For a communicator on another device that shares the heartbeats and the flight record.
  virtual Watchdog& watchdog() = 0;
  virtual FlightRecord& flight_record() = 0;
};

// Waits at the rendezvous until all ranks are there.
std::unique_ptr<TcpCommunicator> make_tcp_communicator(const Rendezvous& rendezvous,
                                                       const CommunicatorOptions& options);

}  // namespace sinklora
