// The merge step of byte-pair encoding: joins neighbouring symbols, the earliest-learned pair first.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

namespace sinklora {

class BpeMerges {
 public:
  // Pairs are added in the order in which they were learned. False when the pair is there already.
  bool add(int32_t left, int32_t right, int32_t result);
  size_t size() const { return merges_.size(); }

  // Memory of apply(), kept between words; one for each thread.
  struct Scratch {
    std::vector<uint32_t> next, previous;
    std::vector<uint64_t> queue;
  };
  // Merges `symbols` until no pair is left to merge: always the pair of lowest rank, of equal ones the
  // leftmost. O(n log n) for n symbols.
  void apply(std::vector<int32_t>& symbols, Scratch& scratch) const;

 private:
  struct Merge {
    int32_t left, right, result;
  };
  struct PairHash {
    size_t operator()(uint64_t pair) const {
      return static_cast<size_t>((pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 20);
    }
  };
  std::optional<uint32_t> rank_of(int32_t left, int32_t right) const;

  std::vector<Merge> merges_;                               // by rank
  std::unordered_map<uint64_t, uint32_t, PairHash> ranks_;  // by left << 32 | right
};

}  // namespace sinklora
