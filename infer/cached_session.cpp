#include "infer/cached_session.h"

#include <algorithm>
#include <limits>

namespace sinklora {
namespace {

bool endless(const KvCachePolicy& policy) { return policy.evicts && policy.positions == KvPositions::index; }

int64_t chunk_of(const Llama& model, const KvCachePolicy& policy) {
  const int64_t context = model.max_context();
  if (policy.capacity > context)
    fail_usage(
        "a cache of {} tokens; the model was laid out for a context of {}: lower --cache-budget or raise "
        "--context",
        policy.capacity, context);
  if (!endless(policy)) return model.max_tokens();
  if (policy.capacity == context)
    fail_usage(
        "a cache of {} tokens with positions by index leaves no position for the next token in a context of "
        "{}: lower --cache-budget or raise --context",
        policy.capacity, context);
  return std::min(model.max_tokens(), context - policy.capacity);
}

}  // namespace

CachedSession::CachedSession(Llama& model, const KvCachePolicy& policy)
    : model_(model),
      cache_(model.ops(), model.config(), policy, chunk_of(model, policy)),
      context_(endless(policy) ? std::numeric_limits<int32_t>::max()
               : policy.evicts ? model.max_context()
                               : policy.capacity) {}

std::vector<float> CachedSession::extend(std::span<const int32_t> ids) {
  if (ids.empty()) fail_internal("a session was extended by no token");
  const auto tokens = static_cast<int64_t>(ids.size());
  if (tokens > context_ - length())
    fail_input(
        "the context is full: {} tokens and {} more, it takes {}; shorten the text, or raise --context",
        length(), tokens, context_);
  for (int64_t begin = 0;; begin += cache_.chunk()) {
    const int64_t count = std::min(cache_.chunk(), tokens - begin);
    const Continuation chunk{ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)), &cache_};
    if (begin + count == tokens) return model_.extend({&chunk, 1});
    model_.absorb({&chunk, 1});
  }
}

}  // namespace sinklora
