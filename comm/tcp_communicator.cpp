// A sum goes along the ring in chunks: partial sums from rank 0 to the last, totals from there over rank 0 to
// the last but one. The schedule is lock step: at step t rank r hands on chunk t - r. Every rank sends and
// receives at most twice the data, whatever the number of ranks, the chunks follow each other through the
// ring, and the order of summation is that of the ranks, wherever chunks begin.
#include "comm/tcp_communicator.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/call_queue.h"
#include "comm/watchdog.h"

namespace sinklora {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // larger than latency x bandwidth of a fast network

enum class Op : uint32_t { sum_f32, sum_f64, gather, broadcast, barrier };
const char* name_of(Op op) {
  static constexpr const char* kNames[] = {"all_reduce_sum", "sum_on_host", "all_gather", "broadcast",
                                           "barrier"};
  return static_cast<uint32_t>(op) < std::size(kNames) ? kNames[static_cast<uint32_t>(op)]
                                                       : "an unknown call";
}

// Travels before the data of every call: neighbours compare what they are about to do.
struct CallHeader {
  uint64_t sequence;
  Op op;
  int32_t root;
  int64_t bytes;
  bool operator==(const CallHeader&) const = default;
};

class Tcp : public TcpCommunicator {
 public:
  Tcp(Connections connections, const CommunicatorOptions& options)
      : rank_(connections.rank),
        world_size_(connections.world_size),
        options_(options),
        names_(connections.names),
        next_(std::move(connections.next)),
        previous_(std::move(connections.previous)),
        record_(rank_, world_size_),
        watchdog_(rank_, names_, std::move(connections.control), record_, options),
        queue_(record_, [this](const std::string& reason) { watchdog_.abort(reason); }) {}
  ~Tcp() override {
    if (std::uncaught_exceptions() > exceptions_) abort("left by an exception");
  }

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  Watchdog& watchdog() override { return watchdog_; }
  FlightRecord& flight_record() override { return record_; }

  Ticket start_all_reduce_sum(std::span<float> bucket) override {
    return start(Op::sum_f32, bucket.size_bytes(), 0, [=, this] { sum(bucket); });
  }
  Ticket start_broadcast(std::span<std::byte> bytes, int root) override {
    check_root(world_size_, root);
    return start(Op::broadcast, bytes.size(), root, [=, this] { broadcast_from(root, bytes); });
  }
  Ticket start_all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    check_gather_sizes(world_size_, mine, all);
    return start(Op::gather, mine.size(), 0, [=, this] { gather(mine, all); });
  }
  void wait(Ticket ticket) override { queue_.wait(ticket); }
  void finish() override { queue_.finish(); }
  void sum_on_host(std::span<double> values) override {
    wait(start(Op::sum_f64, values.size_bytes(), 0, [=, this] { sum(values); }));
  }
  void gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all) override {
    wait(start_all_gather(mine, all));
  }
  void barrier() override {
    wait(start(Op::barrier, 0, 0, [this] {
      std::vector<std::byte> all(static_cast<size_t>(world_size_));
      gather(std::span(all).subspan(rank_, 1), all);
    }));
  }
  void leave_record_in(const std::filesystem::path& folder) override { watchdog_.leave_record_in(folder); }
  void abort(const std::string& reason) noexcept override { watchdog_.abort(reason); }

 private:
  using Bytes = std::span<std::byte>;

  template <class Work>
  Ticket start(Op op, size_t bytes, int root, Work work) {
    const CallHeader header{++sequence_, op, root, static_cast<int64_t>(bytes)};
    return queue_.start(name_of(op), header.bytes, [=, this] {
      try {
        watchdog_.check();
        if (world_size_ == 1) return work();
        agree_on(header);
        work();
      } catch (const PeerClosed&) {
        blame_neighbours("closed its connection");
      } catch (const TimedOut&) {
        blame_neighbours(fmt::format("neither sent nor took anything for {} s", options_.timeout_s));
      }
    });
  }

  // A neighbour may itself be a victim: rank 0 knows better, if it still lives and is given the time to tell.
  [[noreturn]] void blame_neighbours(const std::string& what) {
    std::string reason = watchdog_.verdict_within(std::max(4 * watchdog_.beat_s(), 0.5));
    if (reason.empty())
      reason = fmt::format("a neighbour ({} or {}) {} at {}", names_[(rank_ + world_size_ - 1) % world_size_],
                           names_[(rank_ + 1) % world_size_], what, record_.last_call());
    throw Error(ExitCode::communicator, reason);
  }

  void agree_on(CallHeader mine) {
    CallHeader theirs{};
    exchange(std::as_writable_bytes(std::span(&mine, 1)), {}, std::as_writable_bytes(std::span(&theirs, 1)),
             {});
    if (mine == theirs) return;
    const auto describe = [](const CallHeader& header) {
      return fmt::format("{} of {} bytes (root {}) as call {}", name_of(header.op), header.bytes, header.root,
                         header.sequence);
    };
    throw Error(ExitCode::communicator, fmt::format("the ranks went different ways: {} makes {}, {} makes {}",
                                                    names_[(rank_ + world_size_ - 1) % world_size_],
                                                    describe(theirs), names_[rank_], describe(mine)));
  }

  template <class T>
  void sum(std::span<T> data) {
    const int64_t n = world_size_, r = rank_, size = std::ssize(data);
    const int64_t chunk_size = kChunkBytes / static_cast<int64_t>(sizeof(T)),
                  chunks = (size + chunk_size - 1) / chunk_size;
    if (n == 1) return;
    std::vector<T> partial(static_cast<size_t>(std::min(size, chunk_size)));
    const auto chunk = [&](bool mine, int64_t index) -> std::span<T> {
      if (!mine || index < 0 || index >= chunks) return {};
      return data.subspan(index * chunk_size, std::min(chunk_size, size - index * chunk_size));
    };
    for (int64_t t = 0; t < chunks + 2 * n - 3; ++t) {
      const std::span<T> send_partial = chunk(r < n - 1, t - r),
                         send_total = r == n - 1 ? chunk(true, t - (n - 1)) : chunk(r < n - 2, t - n - r),
                         mine = chunk(r > 0, t - (r - 1)),
                         receive_total =
                             r == 0 ? chunk(true, t - (n - 1)) : chunk(r < n - 1, t - n - (r - 1));
      const std::span<T> receive_partial = std::span(partial).first(mine.size());
      exchange(std::as_writable_bytes(send_partial), std::as_writable_bytes(send_total),
               std::as_writable_bytes(receive_partial), std::as_writable_bytes(receive_total));
      for (size_t i = 0; i < mine.size(); ++i) mine[i] = receive_partial[i] + mine[i];
    }
  }

  void broadcast_from(int root, Bytes data) {
    const int64_t n = world_size_, place = (rank_ - root + n) % n, size = std::ssize(data);
    const int64_t chunks = (size + kChunkBytes - 1) / kChunkBytes;
    const auto chunk = [&](bool mine, int64_t index) -> Bytes {
      if (!mine || index < 0 || index >= chunks) return {};
      return data.subspan(index * kChunkBytes, std::min(kChunkBytes, size - index * kChunkBytes));
    };
    for (int64_t t = 0; t < chunks + n - 2; ++t)
      exchange(chunk(place < n - 1, t - place), {}, chunk(place > 0, t - (place - 1)), {});
  }

  void gather(std::span<const std::byte> mine, Bytes all) {
    const auto block = [&](int rank) {
      return all.subspan(mine.size() * ((rank + world_size_) % world_size_), mine.size());
    };
    if (!mine.empty()) std::memmove(block(rank_).data(), mine.data(), mine.size());
    for (int step = 0; step < world_size_ - 1; ++step)
      exchange(block(rank_ - step), {}, block(rank_ - step - 1), {});
  }

  // Sends to the next rank and receives from the previous one, both at once, so that a ring of full buffers
  // cannot lock up. The time-out counts from the last byte that moved.
  void exchange(Bytes out, Bytes more_out, Bytes in, Bytes more_in) {
    std::array outgoing{out, more_out}, incoming{in, more_in};
    Deadline deadline = after(options_.timeout_s);
    for (;;) {
      size_t moved = 0;
      for (Bytes& part : outgoing) {
        const size_t sent = send_some(next_, part);
        part = part.subspan(sent);
        moved += sent;
        if (!part.empty()) break;
      }
      for (Bytes& part : incoming) {
        const size_t got = receive_some(previous_, part);
        part = part.subspan(got);
        moved += got;
        if (!part.empty()) break;
      }
      const bool sending = !outgoing[0].empty() || !outgoing[1].empty(),
                 receiving = !incoming[0].empty() || !incoming[1].empty();
      if (!sending && !receiving) return;
      if (moved > 0) {
        deadline = after(options_.timeout_s);
        continue;
      }
      pollfd waiting[] = {{watchdog_.verdict_descriptor(), POLLIN, 0},
                          {sending ? next_.get() : -1, POLLOUT, 0},
                          {receiving ? previous_.get() : -1, POLLIN, 0}};
      const int ready = ::poll(waiting, std::size(waiting), milliseconds_left(deadline));
      if (ready < 0 && errno != EINTR)
        fail(ExitCode::communicator, "cannot wait for the neighbours: {}", std::strerror(errno));
      if (waiting[0].revents) watchdog_.check();
      if (ready == 0) throw TimedOut();
    }
  }

  const int rank_, world_size_;
  const CommunicatorOptions options_;
  const int exceptions_ = std::uncaught_exceptions();
  const std::vector<std::string> names_;
  const Descriptor next_, previous_;
  uint64_t sequence_ = 0;
  FlightRecord record_;
  Watchdog watchdog_;
  CallQueue queue_;  // last: its thread uses the others
};

}  // namespace

std::unique_ptr<TcpCommunicator> make_tcp_communicator(const Rendezvous& rendezvous,
                                                       const CommunicatorOptions& options) {
  return std::make_unique<Tcp>(meet(rendezvous), options);
}

}  // namespace sinklora
