// Perplexity by named protocol. A number without its protocol means nothing, so they are printed together.
#pragma once

#include <filesystem>
#include <string>

#include "comm/communicator.h"
#include "model/llama.h"

namespace sinklora {

struct Perplexity {
  int64_t windows = 0, tokens = 0;  // tokens: scored positions, with repetition where windows overlap
  double nll = 0;                   // mean over scored positions, nats
  double ppl = 0;
};

// `blocks`: every sample of the dataset is one window, scored where its targets say so; nll is the mean over
// all scored positions and ppl its exponential. `batch` windows go through the model at once; that changes no
// window's value beyond rounding. With `ranks` each takes its share of the batches and all return the whole.
Perplexity perplexity_blocks(Llama& model, const Dataset& dataset, const AttentionPattern& pattern,
                             int64_t batch, bool show_progress, Communicator* ranks = nullptr);

// `sliding`, exactly as LongLoRA's eval.py: windows of `context` tokens start at 0, stride, 2 stride ...
// below length - context, the last start is dropped; each window is a pass of its own scored at all context -
// 1 positions; nll is the mean of the windows' means and ppl = 2.71828 ^ nll (their constant).
Perplexity perplexity_sliding(Llama& model, const std::vector<int32_t>& stream,
                              const AttentionPattern& pattern, int64_t context, int64_t stride,
                              bool show_progress);

}  // namespace sinklora
