// Text generation, one token at a time.
#pragma once

#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "infer/sampling.h"
#include "infer/session.h"
#include "infer/text_stream.h"
#include "model/config.h"

namespace sinklora {

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  std::vector<int32_t> eos_ids{};                         // each ends the reply and is no part of it
  const volatile std::sig_atomic_t* interrupt = nullptr;  // not 0: stop after this token
};

enum class ReplyEnd { eos, stop_string, max_new_tokens, context_full, interrupted };
std::string_view describe(ReplyEnd end);  // "eos", "stop string" ...

struct Reply {
  std::vector<int32_t> ids;  // those of a stop string included
  std::string text;          // well-formed UTF-8, without the stop string
  ReplyEnd end = ReplyEnd::max_new_tokens;
  int64_t prompt_tokens = 0;  // that the session had not seen
  double prefill_seconds = 0, decode_seconds = 0;
  // Of the tokens that were chosen after the first one, which is the prefill's.
  double decode_tokens_per_s() const;
};

// Continues what `session` holds and `prompt`, which is not empty; `on_text` sees the text as soon as it is
// certain. The session holds the prompt and the reply afterwards, but for the token that ended it.
Reply generate(Session& session, std::span<const int32_t> prompt, Sampler& sampler, TextStream& stream,
               const GenerateOptions& options, const std::function<void(std::string_view)>& on_text);

// The ids that end a text: config.json's, the tokenizer's, which are those that `tokenize` puts there, and
// generation_config.json's, which has more for chat models.
std::vector<int32_t> end_of_text_ids(const LlamaConfig& config, const Tokenizer& tokenizer,
                                     const std::filesystem::path& model);

}  // namespace sinklora
