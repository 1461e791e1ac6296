// The options that say what a session remembers, shared by the verbs that generate.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "cli/option_checks.h"
#include "infer/recompute_session.h"

namespace sinklora {

struct CacheOptions {
  std::string kind = "full", budget = "0.2";
  int64_t sinks = 4;
};

// `options` must outlive the parser.
inline void add_cache_options(CLI::App& verb, CacheOptions& options) {
  auto* group = verb.add_option_group("Cache");
  add_choice(*group, "--cache", options.kind, "which keys and values are kept", {"full", "h2o", "streaming"});
  group
      ->add_option("--budget,--cache-budget", options.budget,
                   "of h2o and streaming: tokens, or a share below 1")
      ->capture_default_str()
      ->type_name("N|RATIO");
  add_count(*group, "--sinks", options.sinks, "of streaming: first tokens that are always kept");
}

// To be called before a model is loaded, which takes long.
inline void check_cache(const CacheOptions& options) {
  if (options.kind != "full")
    fail_usage("--cache {}: this version keeps everything; use --cache full", options.kind);
}

inline std::unique_ptr<Session> make_session(const CacheOptions&, Llama& model, int64_t context) {
  return std::make_unique<RecomputeSession>(model, context);
}

}  // namespace sinklora
