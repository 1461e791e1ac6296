// Which tokens a conversation remembers, by name: full, h2o, streaming.
#pragma once

#include <string>

#include "model/kv_cache.h"

namespace sinklora {

struct CacheOptions {
  std::string kind = "full";       // full | h2o | streaming
  std::string budget = "0.2";      // of h2o and streaming: tokens (1024), or a part of the context (0.2)
  double heavy_part = 0.5;         // of h2o's budget, for heavy hitters; the others are the most recent
  int64_t sinks = 4;               // of streaming
  std::string positions = "auto";  // original | index; auto: index for streaming, else original
};

// The policy for a model that takes `context` tokens. Throws Error(usage) that names the option.
KvCachePolicy make_cache_policy(const CacheOptions& options, int64_t context);

}  // namespace sinklora
