#include "model/sharded_base.h"

#include <doctest/doctest.h>

#include <atomic>
#include <future>

#include "test/comm/thread_communicator.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t kLayers = 5, kRows = 7, kColumns = 13, kBias = 3;

float element(int64_t layer, int64_t i) { return static_cast<float>(1000 * layer + i); }

bool holds(const Tensor& matrix, const Tensor& bias, int64_t layer) {
  bool same = true;
  for (int64_t i = 0; i < matrix.size(); ++i) same = same && matrix.as<float>()[i] == element(layer, i);
  for (int64_t i = 0; i < bias.size(); ++i) same = same && bias.as<float>()[i] == -element(layer, i);
  return same;
}

// Writes all layers, keeps a share of each, and goes up and down through them as passes do, twice.
void walk(Communicator& ranks) {
  const auto ops = make_cpu_ops(DType::f32);
  ShardedBase base(ranks.world_size(), kLayers, DType::f32);
  std::vector<Tensor> matrices(kLayers), biases(kLayers);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    base.take(static_cast<int64_t>(layer), &matrices[layer], {kRows, kColumns});
    base.take(static_cast<int64_t>(layer), &biases[layer], {kBias});
  }
  base.lay_out();
  // 91 and 3 elements, aligned to 64 each, split over the ranks and aligned again.
  const int64_t share = ranks.world_size() == 2 ? 128 : 64;
  CHECK(base.shares.bytes() == kLayers * share * 4);
  CHECK(base.buffers.bytes() == 2 * ranks.world_size() * share * 4);
  base.allocate(*ops);
  base.connect(ranks);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    const auto number = static_cast<int64_t>(layer);
    for (int64_t i = 0; i < kRows * kColumns; ++i) matrices[layer].as<float>()[i] = element(number, i);
    for (int64_t i = 0; i < kBias; ++i) biases[layer].as<float>()[i] = -element(number, i);
    base.keep(*ops, number);
  }
  const auto enter = [&](int64_t layer, int64_t next) {
    base.need(layer);
    base.prefetch(next);
    const auto at = static_cast<size_t>(layer);
    CHECK(holds(matrices[at], biases[at], layer));
    ranks.finish();  // the gather of the next one is over, and has left this one alone
    CHECK(holds(matrices[at], biases[at], layer));
  };
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t layer = 0; layer < kLayers; ++layer) enter(layer, layer + 1);
    for (int64_t layer = kLayers - 1; layer >= 0; --layer) enter(layer, layer - 1);
  }
}

// Counts what goes through it.
class Counting : public Communicator {
 public:
  explicit Counting(Communicator& under) : under_(under) {}
  int rank() const override { return under_.rank(); }
  int world_size() const override { return under_.world_size(); }
  Ticket start_all_reduce_sum(std::span<float> bucket) override {
    return under_.start_all_reduce_sum(bucket);
  }
  Ticket start_broadcast(std::span<std::byte> bytes, int root) override {
    return under_.start_broadcast(bytes, root);
  }
  Ticket start_all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    ++gathers;
    return under_.start_all_gather(mine, all);
  }
  void wait(Ticket ticket) override { under_.wait(ticket); }
  void finish() override { under_.finish(); }
  void sum_on_host(std::span<double> values) override { under_.sum_on_host(values); }
  void gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all) override {
    under_.gather_on_host(mine, all);
  }
  void barrier() override { under_.barrier(); }
  void abort(const std::string& reason) noexcept override { under_.abort(reason); }
  int gathers = 0;

 private:
  Communicator& under_;
};

}  // namespace

TEST_CASE("a sharded base shows every layer whole when a pass needs it, and gathers none twice in a row") {
  for (const int world_size : {2, 3}) {
    CAPTURE(world_size);
    auto ranks = make_thread_communicators(world_size, {});
    std::vector<std::future<int>> walks;
    for (auto& rank : ranks)
      walks.push_back(std::async(std::launch::async, [&rank] {
        Counting counting(*rank);
        walk(counting);
        return counting.gathers;
      }));
    // The two layers at a turn are there already: five up, three down, three up, three down.
    for (auto& gathers : walks) CHECK(gathers.get() == 14);
  }
}

TEST_CASE("a base of one rank is nobody's business") {
  ShardedBase base(1, 3, DType::f32);
  base.lay_out();
  CHECK_FALSE(base.active());
  CHECK(base.shares.bytes() + base.buffers.bytes() == 0);
  base.need(2);
}
