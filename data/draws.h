// One random number after another, for one item of a generated corpus.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

#include "base/random.h"

namespace sinklora {

// The draws of item `item` of a stream: they depend on (seed, purpose, item) alone. At most 2^24 of them.
class Draws {
 public:
  Draws(uint64_t seed, std::string_view purpose, uint64_t item) : stream_(seed, purpose), next_(item << 24) {}
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(stream_.below(next_++, static_cast<uint64_t>(bound)));
  }
  double uniform() { return stream_.uniform(next_++); }
  template <size_t N>
  std::string_view one_of(const std::array<std::string_view, N>& words) {
    return words[static_cast<size_t>(below(N))];
  }
  template <class Container>
  void shuffle(Container& items) {
    for (int64_t i = std::ssize(items) - 1; i > 0; --i)
      std::swap(items[static_cast<size_t>(i)], items[static_cast<size_t>(below(i + 1))]);
  }

 private:
  RandomStream stream_;
  uint64_t next_;
};

}  // namespace sinklora
