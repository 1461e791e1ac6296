// The options that say what a session remembers, shared by the verbs that generate.
#pragma once

#include <CLI/CLI.hpp>

#include "base/json.h"
#include "cli/option_checks.h"
#include "infer/cached_session.h"
#include "model/loaded_model.h"

namespace sinklora {

// Tokens of a prompt that go through the model at once.
constexpr int64_t kPromptChunk = 2048;

// `options` must outlive the parser.
inline CLI::App* add_cache_options(CLI::App& verb, CacheOptions& options) {
  auto* group = verb.add_option_group("Cache");
  add_choice(
      *group, "--cache", options.kind,
      "which keys and values are kept: all, those attended to most and the most recent, or the first and "
      "the most recent",
      {"full", "h2o", "streaming"});
  group
      ->add_option("--cache-budget", options.budget,
                   "of h2o and streaming: tokens, or a part of the context (0.2)")
      ->capture_default_str()
      ->type_name("N|RATIO");
  add_number(*group, "--cache-heavy", options.heavy_part,
             "of h2o: part of the budget for the tokens attended to most; the others are the most recent", 0,
             1);
  add_count(*group, "--cache-sinks", options.sinks, "of streaming: first tokens that are always kept");
  add_choice(*group, "--cache-positions", options.positions,
             "where RoPE puts kept tokens: where they were, or at their place in the cache; auto: index for "
             "streaming",
             {"auto", "original", "index"});
  // Without --cache they would change nothing, and look as if they cost nothing.
  for (CLI::Option* option : group->get_options())
    if (option != group->get_option("--cache")) option->needs(group->get_option("--cache"));
  return group;
}

// What a result record says of the cache: its budget, as asked for and in tokens, and of h2o the part for heavy
// hitters, of streaming the sinks.
inline void add_cache(Json& record, const CacheOptions& options, int64_t context) {
  record["cache"] = options.kind;
  if (options.kind == "full") return;
  const KvCachePolicy policy = make_cache_policy(options, context);
  record["cache_budget"] = options.budget;
  record["cache_tokens"] = policy.capacity;
  if (options.kind == "h2o") record["cache_heavy"] = options.heavy_part;
  if (options.kind == "streaming") record["cache_sinks"] = options.sinks;
  record["cache_positions"] = policy.positions == KvPositions::index ? "index" : "original";
}

}  // namespace sinklora
