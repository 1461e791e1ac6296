// What every communicator is made to do, whatever stands behind it: sums, broadcasts and gathers of random
// sizes, at random times, against a loop in the order of ranks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "base/random.h"
#include "comm/communicator.h"

namespace sinklora::test {

// Of twelve orders of magnitude, so that another order of summation gives other bits.
inline std::vector<float> values_of(uint64_t seed, int rank, size_t size) {
  const RandomStream random(seed, fmt::format("rank{}", rank));
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) {
    const uint64_t bits = random.bits(i);
    values[i] =
        std::ldexp(static_cast<float>(static_cast<int32_t>(bits)), static_cast<int>(bits >> 32) % 40 - 20);
  }
  return values;
}

inline std::vector<float> expected_sum(uint64_t seed, int world_size, size_t size) {
  std::vector<float> sum = values_of(seed, 0, size);
  for (int rank = 1; rank < world_size; ++rank) {
    const std::vector<float> more = values_of(seed, rank, size);
    for (size_t i = 0; i < size; ++i) sum[i] += more[i];
  }
  return sum;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

inline void dawdle(const RandomStream& random, uint64_t& draws) {
  if (random.uniform(draws++) < 0.3)
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(draws++, 3000)));
}

// Where buckets lie during a call: on the host as they are, or on a device.
struct Buckets {
  virtual ~Buckets() = default;
  virtual void* put(std::span<const std::byte> bytes) = 0;
  virtual void get(std::span<std::byte> bytes, const void* from) = 0;
};
struct HostBuckets : Buckets {
  void* put(std::span<const std::byte> bytes) override {
    held.emplace_back(bytes.begin(), bytes.end());
    return held.back().data();
  }
  void get(std::span<std::byte> bytes, const void* from) override {
    std::copy_n(static_cast<const std::byte*>(from), bytes.size(), bytes.begin());
  }
  std::deque<std::vector<std::byte>> held;
};

// Random calls of random sizes; throws where one goes wrong. Returns a hash of all results.
inline std::string exercise(
    Communicator& communicator, uint64_t seed, int rounds,
    const std::function<std::unique_ptr<Buckets>()>& make_buckets = [] {
      return std::make_unique<HostBuckets>();
    }) {
  const int n = communicator.world_size(), rank = communicator.rank();
  const RandomStream plan(seed, "plan"), timing(seed, fmt::format("timing{}", rank));
  uint64_t draws = 0;
  std::string results;
  const auto keep = [&](const auto& values) {
    results += std::to_string(
        xxh3_64({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0])}));
  };
  for (int round = 0; round < rounds; ++round) {
    const uint64_t base = static_cast<uint64_t>(round) * 16,
                   values = seed * 1000 + static_cast<uint64_t>(round);
    // Sizes around the chunk of the TCP ring (65536 floats) and small ones.
    const size_t sizes[] = {0, 1, plan.below(base, 50), 65535 + plan.below(base + 1, 3),
                            1 + plan.below(base + 2, 150000)};
    const size_t size = sizes[plan.below(base + 3, 5)];
    // Two buckets under way at once.
    std::vector<float> first = values_of(values, rank, size),
                       second = values_of(values + 500, rank, size / 3);
    const auto buckets = make_buckets();
    const auto floats = [&](std::vector<float>& host) {
      return std::span(static_cast<float*>(buckets->put(std::as_bytes(std::span(host)))), host.size());
    };
    const auto fetch = [&](auto& host, const void* from) {
      buckets->get(std::as_writable_bytes(std::span(host)), from);
    };
    const std::span<float> first_there = floats(first), second_there = floats(second);
    dawdle(timing, draws);
    const Ticket one = communicator.start_all_reduce_sum(first_there);
    dawdle(timing, draws);
    const Ticket two = communicator.start_all_reduce_sum(second_there);
    communicator.wait(two);
    communicator.wait(one);
    fetch(first, first_there.data());
    fetch(second, second_there.data());
    require(same_bits(first, expected_sum(values, n, size)), fmt::format("sum of {}", size));
    require(same_bits(second, expected_sum(values + 500, n, size / 3)), "second sum");
    keep(first);

    std::vector<double> losses = {0.1 * rank, 1e17, rank == n - 1 ? -1e17 : 1.0};
    double tenths = 0.0, last = rank == n - 1 && n == 1 ? -1e17 : 1.0;
    for (int r = 1; r < n; ++r) tenths += 0.1 * r, last += r == n - 1 ? -1e17 : 1.0;
    communicator.sum_on_host(losses);
    require(losses[0] == tenths && losses[1] == 1e17 * n && losses[2] == last, "sum of losses");

    const int root = static_cast<int>(plan.below(base + 4, static_cast<uint64_t>(n)));
    std::vector<float> copied = values_of(values, rank, size);
    const std::span<float> copied_there = floats(copied);
    communicator.broadcast(std::as_writable_bytes(copied_there), root);
    fetch(copied, copied_there.data());
    require(same_bits(copied, values_of(values, root, size)), "broadcast");

    const size_t block = plan.below(base + 5, 3000);
    std::vector<std::byte> mine(block, static_cast<std::byte>(rank + 1)), all(block * static_cast<size_t>(n));
    dawdle(timing, draws);
    communicator.gather_on_host(mine, all);
    const auto gathered = [&] {
      for (size_t i = 0; i < all.size(); ++i)
        if (all[i] != static_cast<std::byte>(i / block + 1)) return false;
      return true;
    };
    require(gathered(), "gather on the host");
    // On the device, once from memory of its own and once from its place in the whole.
    std::vector<std::byte> nothing(all.size());
    const std::span<std::byte> apart(static_cast<std::byte*>(buckets->put(nothing)), all.size());
    std::copy(mine.begin(), mine.end(), nothing.begin() + static_cast<std::ptrdiff_t>(block) * rank);
    const std::span<std::byte> in_place(static_cast<std::byte*>(buckets->put(nothing)), all.size());
    const std::span<const std::byte> mine_there(static_cast<std::byte*>(buckets->put(mine)), block);
    if (n > 1) {
      communicator.wait(communicator.start_all_gather(mine_there, apart));
      fetch(all, apart.data());
      require(gathered(), "gather");
    }
    communicator.wait(
        communicator.start_all_gather(in_place.subspan(block * static_cast<size_t>(rank), block), in_place));
    fetch(all, in_place.data());
    require(gathered(), "gather in place");
    communicator.barrier();
  }
  communicator.finish();
  return results;
}

}  // namespace sinklora::test
