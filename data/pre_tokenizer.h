// Cuts text into the words inside which byte-level BPE merges.
#pragma once

#include <deque>
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

  // One for each thread.
  class Cutter {
   public:
    explicit Cutter(const PreTokenizer& rules);
    // The words of `text`, which must be well-formed UTF-8; valid until the next call.
    std::span<const std::string_view> cut(std::string_view text);

   private:
    std::deque<Regex::Matcher> matchers_;  // one for each pattern
    std::vector<std::string_view> words_, next_;
  };

 private:
  std::deque<Regex> patterns_;
};

}  // namespace sinklora
