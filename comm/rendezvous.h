// How the processes of a run find each other. Rank 0 listens; the others say who they are; when all have
// come, each gets a connection to rank 0 (heartbeats, failures) and one to each neighbour on the ring 0 -> 1
// -> ... -> 0 (data). A process of another run, another version or another idea of the world size is turned
// away with the reason, and whoever waits in vain learns which ranks came and which did not.
#pragma once

#include <string>
#include <vector>

#include "comm/socket.h"

namespace sinklora {

struct Rendezvous {
  int rank = 0, world_size = 1;
  // tcp://HOST:PORT of rank 0, or file:///PATH on a file system that all see, where rank 0 writes its
  // address.
  std::string init;
  std::string nonce;           // the same in all processes of one run, another in every other run
  std::string version;         // of the program; must agree
  double timeout_s = 60;       // join before loading anything: loading then counts as part of the run
  int listen_descriptor = -1;  // a listening socket that rank 0 inherited (launcher.h); -1: none
  bool host_listens = false;   // rank 0 did so before this process began: a refusal means that it has died
};

struct Connections {
  int rank = 0, world_size = 1;
  std::vector<std::string> names;  // of all ranks: "rank 3 (node7, process 4711)"
  std::vector<Descriptor>
      control;                // of rank 0: to every rank (its own empty); of the others: to rank 0, alone
  Descriptor next, previous;  // on the ring; empty where world_size is 1
};

// Throws Error(communicator) inside the time-out, Error(usage) where `init` cannot be read.
Connections meet(const Rendezvous& rendezvous);

}  // namespace sinklora
