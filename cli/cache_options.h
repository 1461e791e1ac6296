// The options that say what a session remembers, shared by the verbs that generate.
#pragma once

#include <CLI/CLI.hpp>

#include "cli/option_checks.h"
#include "infer/cached_session.h"
#include "model/loaded_model.h"

namespace sinklora {

// Tokens of a prompt that go through the model at once.
constexpr int64_t kPromptChunk = 2048;

// `options` must outlive the parser.
inline void add_cache_options(CLI::App& verb, CacheOptions& options) {
  auto* group = verb.add_option_group("Cache");
  add_choice(
      *group, "--cache", options.kind,
      "which keys and values are kept: all, those attended to most and the most recent, or the first and "
      "the most recent",
      {"full", "h2o", "streaming"});
  group
      ->add_option("--budget,--cache-budget", options.budget,
                   "of h2o and streaming: tokens, or a part of the context (0.2)")
      ->capture_default_str()
      ->type_name("N|RATIO");
  add_number(*group, "--cache-heavy", options.heavy_part,
             "of h2o: part of the budget for the tokens attended to most; the others are the most recent", 0,
             1);
  add_count(*group, "--sinks,--cache-sinks", options.sinks,
            "of streaming: first tokens that are always kept");
  add_choice(*group, "--cache-positions", options.positions,
             "where RoPE puts kept tokens: where they were, or at their place in the cache; auto: index for "
             "streaming",
             {"auto", "original", "index"});
}

}  // namespace sinklora
