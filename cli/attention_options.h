// The options that say who attends to whom, shared by the verbs that let one choose.
#pragma once

#include <string>
#include <vector>

#include "cli/option_checks.h"
#include "model/attention_options.h"

namespace sinklora {

inline const std::vector<std::string> kAttentionKinds{"full", "fixed", "s2", "s2-wrap", "sf"};

// What shapes a pattern. `options` must outlive the parser.
inline void add_pattern_options(CLI::App& verb, AttentionOptions& options) {
  add_number(verb, "--group-ratio", options.group_ratio, "tokens of a group, as a share of the context", 1e-6,
             1);
  add_number(verb, "--shifted-heads", options.shifted_heads, "share of the heads that stay shifted (sf)", 0,
             1);
  add_count(verb, "--sinks", options.sinks, "first tokens that every token sees (sf)");
}

// The same after --attention, which is returned.
inline CLI::Option* add_attention_options(CLI::App& verb, AttentionOptions& options,
                                          const std::string& help = "") {
  CLI::Option* kind = add_choice(verb, "--attention", options.kind, help, kAttentionKinds);
  add_pattern_options(verb, options);
  return kind;
}

}  // namespace sinklora
