// A conversation that remembers keys and values: a prompt goes through the model in chunks, then every token
// costs a pass over that token alone.
#pragma once

#include "infer/cache_policy.h"
#include "infer/session.h"
#include "model/llama.h"

namespace sinklora {

class CachedSession final : public Session {
 public:
  // A chunk of a prompt is what the model takes in one pass (Llama::max_tokens()), or what is left of its
  // RoPE tables beside a cache with positions by index. Tokens of a chunk see one another whatever the
  // budget; what the cache then keeps depends on the chunks that a prompt comes in, as soon as it is longer
  // than the budget.
  CachedSession(Llama& model, const KvCachePolicy& policy);

  std::vector<float> extend(std::span<const int32_t> ids) override;
  void reset() override { cache_.clear(); }
  int64_t length() const override { return cache_.length(); }
  // Without end, as positions go, when old tokens are evicted and positions are those in the cache.
  int64_t context() const override { return context_; }
  int64_t cache_bytes() const override { return cache_.bytes(); }
  const KvCache& cache() const { return cache_; }

 private:
  Llama& model_;
  KvCache cache_;
  int64_t context_;
};

}  // namespace sinklora
