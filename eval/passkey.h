// Passkey retrieval: a number told somewhere in a long irrelevant text, and asked for at its end. Prompts,
// random numbers and the test of the answer are those of LongLoRA's passkey_retrivial.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "eval/retrieval.h"

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

// `tokenizer` must outlive the task. Lengths without filler are refused as passkey_prompt() does.
RetrievalTask passkey_task(const Tokenizer& tokenizer);

}  // namespace sinklora
