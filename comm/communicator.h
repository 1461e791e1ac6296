// What the ranks of a data-parallel run say to each other. One contract, three implementations: a run of
// one process (make_single_communicator), processes over TCP on host memory (tcp_communicator.h), and NCCL on
// device memory (nccl_communicator.h).
//
// Every rank makes the same calls in the same order with the same sizes; where one does not, the others get
// an Error(communicator) that says so. No call waits for ever: a peer that dies, stops, leaves or is late
// ends the call with an Error that names its rank, and every later call of this communicator ends with the
// same one.
//
// Order of summation: on host memory ((x0 + x1) + x2) + ... by rank, element by element. So a sum depends on
// the values and the number of ranks alone: not on timing, not on how gradients are cut into buckets, and it
// is the same bits on every rank. NCCL adds along a pinned ring: same bits on every rank and in every run on
// the same machines with the same buckets, another order than the host's.
//
// Threads: one thread of a rank calls; abort() may come from any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace sinklora {

struct CommunicatorOptions {
  double timeout_s = 600;  // for a call, from this rank's entering it until it is done
  double silence_s = 60;   // a process without a heartbeat for so long has stopped
  double grace_s = 0;      // a failed process that still runs after it exits with code 6; 0: never
};

using Ticket = uint64_t;

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Asynchronous, on memory of the run's device, which stays untouched until wait(). Calls are done in the
  // order in which they were started. A start*() orders itself behind the work that the device was given
  // before; wait() orders the work that it is given afterwards behind the call, so on a GPU the host does not
  // block.
  virtual Ticket start_all_reduce_sum(std::span<float> bucket) = 0;
  virtual Ticket start_broadcast(std::span<std::byte> bytes, int root) = 0;
  // all = mine of rank 0, mine of rank 1, ...
  virtual Ticket start_all_gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  virtual void wait(Ticket ticket) = 0;
  // The host waits until everything that was started is done.
  virtual void finish() = 0;

  // These wait, and work on host memory whatever the device: losses, counts, agreement.
  virtual void sum_on_host(std::span<double> values) = 0;
  virtual void gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  virtual void barrier() = 0;

  // Where this rank leaves its flight record if the run fails; empty, and before the first call: nowhere. A rank
  // that aborts while it leaves none spares the others theirs: its words explain the end.
  virtual void leave_record_in(const std::filesystem::path&) {}
  // Ends every call of every rank, now and later, with `reason` and this rank's name. A communicator that is
  // destroyed while an exception passes aborts by itself.
  virtual void abort(const std::string& reason) noexcept = 0;

  void broadcast(std::span<std::byte> bytes, int root) { wait(start_broadcast(bytes, root)); }
};

std::unique_ptr<Communicator> make_single_communicator();

// What every rank gives, equally much: that of rank 0, that of rank 1, ...
template <class T>
std::vector<T> gather(Communicator& ranks, const std::vector<T>& mine) {
  std::vector<T> all(mine.size() * static_cast<size_t>(ranks.world_size()));
  ranks.gather_on_host(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  return all;
}

// Throws where `all` is not world_size times as long as `mine`.
void check_gather_sizes(int world_size, std::span<const std::byte> mine, std::span<std::byte> all);
void check_root(int world_size, int root);

}  // namespace sinklora
