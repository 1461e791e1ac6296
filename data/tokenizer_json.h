// What a Hugging Face tokenizer.json says, for the two kinds that LLaMA models use: byte-level BPE (GPT-2,
// LLaMA-3, SmolLM2) and sentencepiece-style BPE with byte fallback (LLaMA-2). Everything else is refused by
// name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/added_tokens.h"

namespace sinklora {

struct BpeFile {
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges;  // earliest learned first
  std::vector<AddedToken> added_tokens;
  std::string unk_token;  // "": none
  bool fuse_unk = false, byte_fallback = false;
  bool ignore_merges = false;  // a word that is in the vocabulary is one token, whatever the merges say

  bool byte_level = false;
  std::vector<std::string> splits;  // byte level: PCRE2 patterns; each cuts the words of the one before

  // Sentencepiece style: what is put in front of a text besides turning its spaces into U+2581.
  enum class Prefix { none, always, unless_there, beginning_unless_there };
  Prefix prefix = Prefix::none;
  bool normalizes = false;          // a normalizer does this, before tokens are looked for in normalized text
  bool words_apart = false;         // every U+2581 begins a word
  bool strips_first_space = false;  // of decoded text

  std::string bos;  // what the post-processor puts in front of a text; "": nothing
};

BpeFile read_tokenizer_json(std::string_view text, const std::string& source);

}  // namespace sinklora
