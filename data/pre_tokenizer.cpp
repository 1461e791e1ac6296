#include "data/pre_tokenizer.h"

namespace sinklora {

PreTokenizer::PreTokenizer(std::span<const std::string> patterns, const std::string& source) {
  for (const std::string& pattern : patterns) patterns_.emplace_back(pattern, source);
}

PreTokenizer::Cutter::Cutter(const PreTokenizer& rules) {
  for (const Regex& pattern : rules.patterns_) matchers_.emplace_back(pattern);
}

std::span<const std::string_view> PreTokenizer::Cutter::cut(std::string_view text) {
  words_.assign(1, text);
  for (Regex::Matcher& matcher : matchers_) {
    next_.clear();
    for (const std::string_view word : words_) {
      size_t done = 0;
      while (done < word.size()) {
        const auto match = matcher.find(word, done);
        if (!match) break;
        if (match->begin > done) next_.push_back(word.substr(done, match->begin - done));
        next_.push_back(word.substr(match->begin, match->end - match->begin));
        done = match->end;
      }
      if (done < word.size()) next_.push_back(word.substr(done));
    }
    words_.swap(next_);
  }
  return words_;
}

}  // namespace sinklora
