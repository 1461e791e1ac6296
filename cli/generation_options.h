// The options of generate and chat: how tokens are chosen, when a reply ends, what is remembered.
#pragma once

#include <CLI/CLI.hpp>

#include "cli/cache_options.h"
#include "cli/option_checks.h"
#include "infer/generate.h"

namespace sinklora {

struct GenerationOptions {
  SamplingOptions sampling{};
  int64_t seed = 0, max_new_tokens = 128;
  std::vector<std::string> stops{};
  CacheOptions cache{};
};

// `options` must outlive the parser.
inline void add_generation_options(CLI::App& verb, GenerationOptions& options) {
  auto* sampling = verb.add_option_group("Sampling");
  add_number(*sampling, "--temperature", options.sampling.temperature, "0: always the likeliest token", 0,
             100);
  add_count(*sampling, "--top-k", options.sampling.top_k, "choose among the k likeliest; 0: among all");
  add_number(*sampling, "--top-p", options.sampling.top_p,
             "choose among the likeliest that together have probability p", 1e-9, 1);
  add_number(*sampling, "--repetition-penalty", options.sampling.repetition_penalty,
             "make tokens of the text so far less likely; 1: none", 1e-3, 100);
  add_count(*sampling, "--seed", options.seed, "of the sampling: the same seed gives the same text");
  auto* end = verb.add_option_group("End of the reply");
  add_count(*end, "--max-new-tokens", options.max_new_tokens, "longest reply", 1);
  end->add_option("--stop", options.stops, "end at this text, which is left out; may be given several times")
      ->type_name("TEXT")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);  // or "[a,b]" would be two texts
  add_cache_options(verb, options.cache);
}

inline SamplingOptions sampling_options(const GenerationOptions& options) {
  SamplingOptions sampling = options.sampling;
  sampling.seed = static_cast<uint64_t>(options.seed);
  return sampling;
}

}  // namespace sinklora
