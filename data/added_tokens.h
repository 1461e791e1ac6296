// Vocabulary entries that are matched in the text as they stand, before it is split into words: "<s>",
// "<|eot_id|>".
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/utf8.h"

namespace sinklora {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = true;       // matched in control text only; left out of decoded text
  bool single_word = false;  // only where no letter or digit touches it
  bool left_strip = false;   // takes the white space before it
  bool right_strip = false;  // takes the white space after it
  bool normalized = false;   // matched in the text as the normalizer leaves it
};

class AddedTokens {
 public:
  struct Match {
    TextRange range;
    int32_t id;
  };

  void add(const AddedToken& token);
  bool empty() const { return tokens_.empty(); }
  // Leftmost first, of those that begin together the longest. A special token counts only inside one of
  // `control`.
  std::vector<Match> find(std::string_view text, std::span<const TextRange> control) const;

 private:
  const AddedToken* longest_at(std::string_view text, size_t at, std::span<const TextRange> control) const;

  std::vector<AddedToken> tokens_;
  std::vector<int32_t> ends_{-1};  // by trie node: the token that ends there, or -1; node 0 is the root
  std::unordered_map<uint64_t, uint32_t> children_;  // by node << 8 | byte
  std::array<bool, 256> begins_{};                   // bytes that begin a token
};

}  // namespace sinklora
