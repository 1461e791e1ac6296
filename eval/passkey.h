// Passkey retrieval: a number told somewhere in a long irrelevant text, and asked for at its end. Prompts,
// random numbers and the test of the answer are those of LongLoRA's passkey_retrivial.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "infer/session.h"

namespace sinklora {

struct PasskeyPrompt {
  std::string text;
  int64_t key = 0;
};

// Characters of filler for a prompt of roughly `tokens` tokens.
int64_t passkey_filler(int64_t tokens);
// The prompt of trial `seed`. `depth`: the share of the filler in front of the key; without it, it is drawn
// as LongLoRA does. The key is the same either way. Throws Error(usage) when there is not so much filler.
PasskeyPrompt passkey_prompt(int64_t filler_characters, uint32_t seed, std::optional<double> depth);
// The tokens of a right answer, as they follow the prompt.
std::vector<int32_t> passkey_answer(const Tokenizer& tokenizer, int64_t key);

struct PasskeyOptions {
  int64_t max_tokens = 8000, interval = 1000;  // lengths are interval, 2 interval ... max_tokens
  int64_t depths = 0;                          // evenly from 0 to 1; 0: one random depth a trial
  int64_t trials = 10;                         // of each length and depth
};

struct PasskeyCell {
  int64_t wanted_tokens = 0;
  std::optional<double> depth;
  int64_t trials = 0, correct = 0;
  double tokens = 0;  // of the prompts, on average
  double accuracy() const { return static_cast<double>(correct) / static_cast<double>(trials); }
};

// Tokens of the longest prompt and its answer.
int64_t passkey_context(const Tokenizer& tokenizer, const PasskeyOptions& options);
// A trial is right when the likeliest tokens are exactly those of the answer. Cells by length, then depth.
std::vector<PasskeyCell> passkey_retrieval(Session& session, const Tokenizer& tokenizer,
                                           const PasskeyOptions& options, bool show_progress);
// Lengths from left to right, depths from top to bottom, as an SVG file.
void write_heat_map(const std::filesystem::path& path, const std::string& title,
                    std::span<const PasskeyCell> cells);

}  // namespace sinklora
