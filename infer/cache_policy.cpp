#include "infer/cache_policy.h"

#include <charconv>
#include <cmath>

namespace sinklora {
namespace {

// "1024" or "0.2": a number with a point is a part of the context.
int64_t budget_tokens(const std::string& budget, int64_t context) {
  const char* const end = budget.data() + budget.size();
  int64_t tokens = 0;
  if (const auto whole = std::from_chars(budget.data(), end, tokens);
      whole.ec != std::errc{} || whole.ptr != end) {
    double part = 0;
    const auto read = std::from_chars(budget.data(), end, part);
    if (read.ec != std::errc{} || read.ptr != end || !(part > 0 && part <= 1))
      fail_usage(
          "--cache-budget {}: wanted a plain number of tokens, or a part of the context above 0 and up to "
          "1.0",
          budget);
    tokens = std::max<int64_t>(1, std::llround(part * static_cast<double>(context)));
  }
  if (tokens < 1 || tokens > context)
    fail_usage("--cache-budget {}: {} tokens; wanted 1 to {}, the context", budget, tokens, context);
  return tokens;
}

KvPositions positions_of(const CacheOptions& options) {
  if (options.positions == "original") return KvPositions::original;
  if (options.positions == "index") return KvPositions::index;
  if (options.positions != "auto")
    fail_usage("--cache-positions {}: wanted auto, original or index", options.positions);
  return options.kind == "streaming" ? KvPositions::index : KvPositions::original;
}

}  // namespace

KvCachePolicy make_cache_policy(const CacheOptions& options, int64_t context) {
  KvCachePolicy policy{context, false, {}, positions_of(options)};
  if (options.kind == "full") return policy;
  if (options.kind != "h2o" && options.kind != "streaming")
    fail_usage("--cache {}: wanted full, h2o or streaming", options.kind);
  policy.evicts = true;
  policy.capacity = budget_tokens(options.budget, context);
  if (options.kind == "h2o") {
    if (!(options.heavy_part >= 0 && options.heavy_part <= 1))
      fail_usage("--cache-heavy {}: wanted a part of the budget, 0 to 1", options.heavy_part);
    policy.keep.heavy = std::llround(options.heavy_part * static_cast<double>(policy.capacity));
  } else {
    if (options.sinks < 0 || options.sinks >= policy.capacity)
      fail_usage("--cache-sinks {}: wanted 0 to {}, less than the cache's budget of {} tokens", options.sinks,
                 policy.capacity - 1, policy.capacity);
    policy.keep.sinks = options.sinks;
  }
  policy.keep.recent = policy.capacity - policy.keep.sinks - policy.keep.heavy;
  return policy;
}

}  // namespace sinklora
