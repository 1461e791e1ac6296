// Perplexity by named protocol. A number without its protocol means nothing, so they are printed together.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "model/llama.h"

namespace sinklora {

// What follows tokens at positions [begin, end) of their sequence.
struct PositionBucket {
  int64_t begin = 0, end = 0, tokens = 0;
  double nll = 0;  // mean, nats; 0 without tokens
};

struct Perplexity {
  int64_t windows = 0, tokens = 0;  // tokens: scored positions, with repetition where windows overlap
  double nll = 0;                   // mean over scored positions, nats
  double ppl = 0;
  std::vector<PositionBucket> by_position;
  bool stopped = false;  // by PerplexityOptions::stop: there is nothing else
};

struct PerplexityOptions {
  int64_t batch = 1;    // windows that go through the model at once; changes no value beyond rounding
  int64_t buckets = 1;  // of by_position, of equal width
  bool show_progress = false;
  // Each rank takes its share of the windows, and all return the whole: the sums of windows, added up in the
  // order of windows, so that the number of ranks changes no bit.
  Communicator* ranks = nullptr;
  std::function<bool()> stop = {};           // asked between batches; one rank's yes ends it for all
  std::string data = "the evaluation data";  // its path, for messages
};

// `blocks`: every sample of the dataset is one window of at most `context` tokens, scored where its targets
// say so; nll is the mean over all scored positions and ppl its exponential.
Perplexity perplexity_blocks(Llama& model, const Dataset& dataset, const AttentionPattern& pattern,
                             int64_t context, const PerplexityOptions& options);

// The same with keys and values in a cache, as when generating: `chunk` tokens at a time see what the cache
// has kept of their sequence and one another, then enter it, and it evicts what `policy` does not keep. One
// token at a time is a text that is generated; a larger chunk sees up to `chunk` - 1 tokens more.
Perplexity perplexity_cached(Llama& model, const Dataset& dataset, const KvCachePolicy& policy, int64_t chunk,
                             int64_t context, const PerplexityOptions& options);

enum class SlidingRule : uint8_t {
  eval,         // LongLoRA's eval.py
  distributed,  // its eval_distributed.py
};

// Windows of `context` tokens start at 0, stride, 2 stride ... below length - context; each is a pass of its
// own, scored at all context - 1 positions. By eval.py the last start is dropped, nll is the mean of the
// windows' means, and ppl = 2.71828 ^ nll (its constant). By eval_distributed.py all windows count, nll is
// the mean over all positions and ppl its exponential.
Perplexity perplexity_sliding(Llama& model, const std::vector<int32_t>& stream,
                              const AttentionPattern& pattern, int64_t context, int64_t stride,
                              SlidingRule rule, const PerplexityOptions& options);

}  // namespace sinklora
