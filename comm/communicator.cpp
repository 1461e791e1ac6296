#include "comm/communicator.h"

#include <algorithm>

#include "base/error.h"

namespace sinklora {
namespace {

// One process is its own sum; only abort() needs a memory.
class SingleCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  Ticket start_all_reduce_sum(std::span<float>) override { return next(); }
  Ticket start_broadcast(std::span<std::byte>, int root) override {
    check_root(1, root);
    return next();
  }
  Ticket start_all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    check_gather_sizes(1, mine, all);
    if (!mine.empty() && mine.data() != all.data())
      fail_internal("all_gather of one rank works in place only");
    return next();
  }
  void wait(Ticket) override { check(); }
  void finish() override { check(); }
  void sum_on_host(std::span<double>) override { check(); }
  void gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all) override {
    check();
    check_gather_sizes(1, mine, all);
    std::copy(mine.begin(), mine.end(), all.begin());
  }
  void barrier() override { check(); }
  void abort(const std::string& reason) noexcept override { reason_ = reason; }

 private:
  void check() const {
    if (!reason_.empty()) fail(ExitCode::communicator, "the run was aborted: {}", reason_);
  }
  Ticket next() {
    check();
    return 0;
  }
  std::string reason_;
};

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() { return std::make_unique<SingleCommunicator>(); }

void check_gather_sizes(int world_size, std::span<const std::byte> mine, std::span<std::byte> all) {
  if (all.size() != mine.size() * static_cast<size_t>(world_size))
    fail_internal("all_gather of {} bytes from each of {} ranks into {} bytes", mine.size(), world_size,
                  all.size());
}

void check_root(int world_size, int root) {
  if (root < 0 || root >= world_size) fail_internal("broadcast from rank {} of {}", root, world_size);
}

}  // namespace sinklora
