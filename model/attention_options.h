// The --attention options of a run, and the pattern that they mean for a model and a context.
#pragma once

#include <string>

#include "kernels/attention_pattern.h"

namespace sinklora {

struct AttentionOptions {
  std::string kind = "sf";      // full, fixed, s2, s2-wrap, sf
  double group_ratio = 0.25;    // group size as a share of the context
  double shifted_heads = 0.25;  // share of the heads that stay shifted; sf alone (s2: 1/2, fixed: 0)
  int64_t sinks = 4;            // sf alone (the others have none)
};

// The group size is group_ratio * context, rounded down to an even number of at least 2, for every sequence
// of the run: a shorter sequence has fewer or shorter groups. Shifted are the last floor(share * num_heads)
// heads.
AttentionPattern make_pattern(const AttentionOptions& options, int64_t context, int64_t num_heads);
std::string describe(const AttentionOptions& options, const AttentionPattern& pattern, int64_t num_heads);

}  // namespace sinklora
