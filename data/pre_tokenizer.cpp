#include "data/pre_tokenizer.h"

#include <iterator>

namespace sinklora {

PreTokenizer::PreTokenizer(std::span<const std::string> patterns, const std::string& source) {
  for (const std::string& pattern : patterns) steps_.emplace_back(pattern, source);
}

void PreTokenizer::split(std::string_view text, std::vector<std::string_view>& words) const {
  std::vector<std::string_view> now{text}, then;
  for (const Regex& step : steps_) {
    Regex::Matcher matcher(step);
    then.clear();
    for (const std::string_view word : now) {
      size_t done = 0;
      while (done < word.size()) {
        const auto match = matcher.find(word, done);
        if (!match) break;
        if (match->begin > done) then.push_back(word.substr(done, match->begin - done));
        then.push_back(word.substr(match->begin, match->end - match->begin));
        done = match->end;
      }
      if (done < word.size()) then.push_back(word.substr(done));
    }
    now.swap(then);
  }
  words.insert(words.end(), now.begin(), now.end());
}

}  // namespace sinklora
