#include "test/comm/thread_communicator.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <string_view>

#include "base/error.h"
#include "comm/call_queue.h"

namespace sinklora::test {
namespace {

// What one rank brings to a call. The memory is its own; the others read it between the two meetings.
struct Contribution {
  const char* op = "";
  int64_t bytes = 0;
  int root = 0;
  std::byte* data = nullptr;        // summed or broadcast in place; gathered into
  const std::byte* mine = nullptr;  // of a gather
};

struct Group {
  explicit Group(int world_size) : contributions(world_size), arrived(world_size), left(world_size) {}
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Contribution> contributions;
  std::vector<bool> arrived, left;
  int missing = 0;  // set by the first to arrive
  uint64_t meetings = 0;
  std::string failure;
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(int rank, std::shared_ptr<Group> group, const CommunicatorOptions& options)
      : rank_(rank),
        world_size_(static_cast<int>(group->left.size())),
        options_(options),
        group_(std::move(group)),
        record_(rank, world_size_),
        queue_(record_, [](const std::string&) {}) {}
  ~ThreadCommunicator() override {
    if (std::uncaught_exceptions() > exceptions_)
      abort("left by an exception");
    else
      leave();
  }

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }

  Ticket start_all_reduce_sum(std::span<float> bucket) override {
    return start_sum("all_reduce_sum", bucket);
  }
  Ticket start_broadcast(std::span<std::byte> bytes, int root) override {
    check_root(world_size_, root);
    return start({"broadcast", static_cast<int64_t>(bytes.size()), root, bytes.data(), nullptr}, [=, this] {
      if (rank_ != root && !bytes.empty())
        std::memcpy(bytes.data(), group_->contributions[root].data, bytes.size());
    });
  }
  Ticket start_all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    return start_gather("all_gather", mine, all);
  }
  void wait(Ticket ticket) override { queue_.wait(ticket); }
  void finish() override { queue_.finish(); }
  void sum_on_host(std::span<double> values) override { wait(start_sum("sum_on_host", values)); }
  void gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all) override {
    wait(start_gather("gather_on_host", mine, all));
  }
  void barrier() override {
    wait(start({"barrier", 0, 0, nullptr, nullptr}, [] {}));
  }
  void abort(const std::string& reason) noexcept override {
    const std::lock_guard lock(group_->mutex);
    set_failure(fmt::format("rank {} aborted: {}", rank_, reason));
  }

 private:
  // Every rank adds up its own slice of the elements, of all ranks in their order, and writes it to all.
  template <class T>
  Ticket start_sum(const char* op, std::span<T> values) {
    return start({op, static_cast<int64_t>(values.size_bytes()), 0,
                  reinterpret_cast<std::byte*>(values.data()), nullptr},
                 [=, this] {
                   const size_t begin = values.size() * rank_ / world_size_,
                                end = values.size() * (rank_ + 1) / world_size_;
                   const auto of = [&](int rank) {
                     return reinterpret_cast<T*>(group_->contributions[rank].data);
                   };
                   for (size_t i = begin; i < end; ++i) {
                     T sum = of(0)[i];
                     for (int rank = 1; rank < world_size_; ++rank) sum += of(rank)[i];
                     for (int rank = 0; rank < world_size_; ++rank) of(rank)[i] = sum;
                   }
                 });
  }

  Ticket start_gather(const char* op, std::span<const std::byte> mine, std::span<std::byte> all) {
    check_gather_sizes(world_size_, mine, all);
    return start({op, static_cast<int64_t>(mine.size()), 0, all.data(), mine.data()}, [=, this] {
      if (mine.empty()) return;
      for (int rank = 0; rank < world_size_; ++rank)
        std::memmove(all.data() + mine.size() * rank, group_->contributions[rank].mine, mine.size());
    });
  }

  Ticket start(const Contribution& contribution, std::function<void()> work) {
    return queue_.start(contribution.op, contribution.bytes, [this, contribution, work = std::move(work)] {
      {
        const std::lock_guard lock(group_->mutex);
        group_->contributions[rank_] = contribution;
      }
      meet();
      check_same_call();
      work();
      meet();  // nobody goes on while others still read its memory
    });
  }

  // Between two meetings the contributions do not change, so they are read without the lock.
  void check_same_call() {
    const Contribution& first = group_->contributions[0];
    for (int rank = 1; rank < world_size_; ++rank) {
      const Contribution& other = group_->contributions[rank];
      if (std::string_view(first.op) != other.op || first.bytes != other.bytes || first.root != other.root)
        fail_everyone(
            fmt::format("the ranks went different ways: rank 0 calls {} of {} bytes (root {}), rank {} "
                        "{} of {} bytes (root {})",
                        first.op, first.bytes, first.root, rank, other.op, other.bytes, other.root));
    }
  }

  void meet() {
    Group& group = *group_;
    std::unique_lock lock(group.mutex);
    if (!group.failure.empty()) throw Error(ExitCode::communicator, group.failure);
    if (group.missing == 0) group.missing = world_size_;
    group.arrived[rank_] = true;
    const uint64_t meeting = group.meetings;
    if (--group.missing == 0) {
      std::fill(group.arrived.begin(), group.arrived.end(), false);
      ++group.meetings;
      group.changed.notify_all();
      return;
    }
    const auto ended = [&] {
      return group.meetings != meeting || !group.failure.empty() || !absent(true).empty();
    };
    const bool in_time =
        group.changed.wait_for(lock, std::chrono::duration<double>(options_.timeout_s), ended);
    if (group.meetings != meeting) return;
    if (!absent(true).empty())
      set_failure(fmt::format("{} left before {}", ranks_of(absent(true)), record_.last_call()));
    else if (!in_time)
      set_failure(fmt::format("{} did not come to {} within {} s", ranks_of(absent(false)),
                              record_.last_call(), options_.timeout_s));
    throw Error(ExitCode::communicator, group.failure);
  }

  std::vector<int> absent(bool that_left) const {
    std::vector<int> ranks;
    for (int rank = 0; rank < world_size_; ++rank)
      if (!group_->arrived[rank] && (!that_left || group_->left[rank])) ranks.push_back(rank);
    return ranks;
  }
  static std::string ranks_of(const std::vector<int>& ranks) {
    return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "));
  }

  [[noreturn]] void fail_everyone(const std::string& reason) {
    const std::lock_guard lock(group_->mutex);
    set_failure(reason);
    throw Error(ExitCode::communicator, group_->failure);
  }
  void set_failure(const std::string& reason) {  // with the lock held; the first one stays
    if (group_->failure.empty()) group_->failure = reason;
    group_->changed.notify_all();
  }
  void leave() {
    const std::lock_guard lock(group_->mutex);
    group_->left[rank_] = true;
    group_->changed.notify_all();
  }

  const int rank_, world_size_;
  const CommunicatorOptions options_;
  const int exceptions_ = std::uncaught_exceptions();
  const std::shared_ptr<Group> group_;
  FlightRecord record_;
  CallQueue queue_;  // last: its thread uses the others
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int world_size,
                                                                     const CommunicatorOptions& options) {
  if (world_size < 1) fail_usage("{} ranks, wanted at least 1", world_size);
  const auto group = std::make_shared<Group>(world_size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < world_size; ++rank)
    ranks.push_back(std::make_unique<ThreadCommunicator>(rank, group, options));
  return ranks;
}

}  // namespace sinklora::test
