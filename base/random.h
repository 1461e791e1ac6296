// Counter-based random numbers: a value depends on (seed, stream, index) alone, never on what was drawn
// before. Hence any sample of any epoch and any element of any tensor can be drawn again after a restart, on
// any number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace sinklora {

// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A stream of random numbers, named so that two tensors of one run never share values.
class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name);
  uint64_t bits(uint64_t index) const;                   // 64 random bits
  double uniform(uint64_t index) const;                  // in [0, 1)
  double normal(uint64_t index) const;                   // mean 0, variance 1 (Box-Muller)
  uint64_t below(uint64_t index, uint64_t bound) const;  // in [0, bound), bias < bound / 2^64

 private:
  std::array<uint32_t, 2> key_;
  uint64_t stream_;
};

// A random bijection of [0, size): a Feistel network over the next power of four, walked until it lands
// inside. No memory, any position at once: what a resumable shuffle needs.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t size_, key_;
  int half_bits_;
};

}  // namespace sinklora
