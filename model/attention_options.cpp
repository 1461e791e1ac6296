#include "model/attention_options.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace sinklora {

AttentionPattern make_pattern(const AttentionOptions& options, int64_t context, int64_t num_heads) {
  AttentionPattern pattern;
  pattern.first_shifted_head = num_heads;
  if (options.kind == "full") return pattern;
  pattern.group_size =
      std::max<int64_t>(2, static_cast<int64_t>(options.group_ratio * static_cast<double>(context)) / 2 * 2);
  double share = 0;
  if (options.kind == "s2" || options.kind == "s2-wrap") {
    share = 0.5;
    pattern.wrap = options.kind == "s2-wrap";
  } else if (options.kind == "sf") {
    share = options.shifted_heads;
    pattern.num_sinks = options.sinks;
  } else if (options.kind != "fixed") {
    fail_usage("--attention {}: unknown; choose full, fixed, s2, s2-wrap or sf", options.kind);
  }
  pattern.first_shifted_head =
      num_heads - static_cast<int64_t>(std::floor(share * static_cast<double>(num_heads)));
  return pattern;
}

std::string describe(const AttentionOptions& options, const AttentionPattern& pattern, int64_t num_heads) {
  if (pattern.group_size == 0) return "full causal attention";
  std::string text =
      fmt::format("{}: groups of {} tokens, {} of {} heads shifted by {}", options.kind, pattern.group_size,
                  num_heads - pattern.first_shifted_head, num_heads, pattern.group_size / 2);
  if (pattern.wrap) text += ", wrapping around";
  if (pattern.num_sinks > 0) text += fmt::format(", {} sink tokens", pattern.num_sinks);
  return text;
}

}  // namespace sinklora
