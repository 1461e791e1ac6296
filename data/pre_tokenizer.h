// Cuts text into the words inside which byte-level BPE merges.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/regex.h"

namespace sinklora {

class PreTokenizer {
 public:
  // PCRE2 patterns: each cuts the words of the one before into its matches and what lies between them.
  PreTokenizer(std::span<const std::string> patterns, const std::string& source);
  // Appends the words of `text`, which must be well-formed UTF-8.
  void split(std::string_view text, std::vector<std::string_view>& words) const;

 private:
  std::vector<Regex> steps_;
};

}  // namespace sinklora
