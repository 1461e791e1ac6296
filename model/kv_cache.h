// The keys and values that a model remembers of one sequence, in one arena that is laid out up front: what is
// kept never grows beyond it.
#pragma once

#include <vector>

#include "kernels/arena.h"
#include "model/block.h"

namespace sinklora {

// Where RoPE puts a remembered token: where it was in the sequence, as in training, or at its index among the
// tokens that are left, so that positions never exceed the cache (StreamingLLM, arXiv 2309.17453).
enum class KvPositions : uint8_t { original, index };

struct KvCachePolicy {
  int64_t capacity = 0;  // tokens
  bool evicts = false;   // what `keep` does not name, once there are more tokens; else the cache is full then
  KvRetention keep;      // capacity = sinks + heavy + recent
  KvPositions positions = KvPositions::original;
};

// Keys are kept after RoPE under original positions, which costs a decoding step nothing, and before it under
// positions by index: those of many keys change with every eviction, and turning kept keys on again and again
// would add up roundings. Decoding then turns every key it reads, in the registers that hold it.
class KvCache {
 public:
  // `chunk`: the most tokens that are added at once; allocates.
  KvCache(Ops& ops, const LlamaConfig& config, const KvCachePolicy& policy, int64_t chunk);

  const KvCachePolicy& policy() const { return policy_; }
  int64_t chunk() const { return chunk_; }
  int64_t length() const { return length_; }  // of the sequence so far
  int64_t count() const { return policy_.evicts ? std::min(length_, policy_.capacity) : length_; }
  // A bound on count() that changes seldom while the sequence grows.
  int64_t most_count() const;
  // The position that RoPE gives to the next token.
  int64_t next_position() const { return policy_.positions == KvPositions::index ? count() : length_; }
  // Keys, values and, where tokens are evicted, 4 bytes of position and as many of rank and mass each.
  int64_t bytes() const { return arena_.bytes(); }
  void clear() { length_ = 0; }
  // No two caches have the same, not even one after the other at the same address.
  uint64_t identity() const { return identity_; }
  // Takes over all that another cache of the same policy remembers: a prompt that several sequences begin
  // with is read once.
  void copy_from(const KvCache& other);

  // For the next `tokens` tokens, from `first_row` of a pass on, in a layer; and after all layers have seen
  // them.
  CacheStep step(int64_t layer, int64_t first_row, int64_t tokens) const;
  void expect_to_hold(int64_t tokens) const;  // throws Error(internal) where step() would
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  Ops& ops_;
  uint64_t identity_;
  KvCachePolicy policy_;
  int64_t num_kv_heads_, chunk_, length_ = 0;
  std::vector<KvCacheView> layers_;
  Tensor new_mass_;  // stat [Hkv * chunk]
  Arena arena_{"KV cache"}, scratch_{"mass of new tokens"};
};

}  // namespace sinklora
