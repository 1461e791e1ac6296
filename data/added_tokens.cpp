#include "data/added_tokens.h"

#include <algorithm>

#include "data/regex.h"

namespace sinklora {
namespace {

// A letter, digit, mark or connector as Unicode's regular expressions define \w.
bool is_word_character(std::string_view text, size_t at) {
  const size_t length = utf8_length(text, at);
  if (length == 0) return false;
  static const Regex word("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]", "word characters");
  return Regex::Matcher(word).find(text.substr(at, length), 0).has_value();
}

bool stands_alone(std::string_view text, TextRange range) {
  return (range.begin == 0 || !is_word_character(text, previous_character(text, range.begin))) &&
         (range.end == text.size() || !is_word_character(text, range.end));
}

}  // namespace

void AddedTokens::add(const AddedToken& token) {
  uint32_t node = 0;
  for (const char c : token.content) {
    const auto byte = static_cast<unsigned char>(c);
    const auto [child, is_new] =
        children_.try_emplace(uint64_t{node} << 8 | byte, static_cast<uint32_t>(ends_.size()));
    if (is_new) ends_.push_back(-1);
    node = child->second;
  }
  ends_[node] = static_cast<int32_t>(tokens_.size());
  begins_[static_cast<unsigned char>(token.content[0])] = true;
  tokens_.push_back(token);
}

const AddedToken* AddedTokens::longest_at(std::string_view text, size_t at,
                                          std::span<const TextRange> control) const {
  // Of the control ranges, which are in order and apart, only the first that ends after `at` can hold a token
  // at `at`.
  const auto range = std::upper_bound(control.begin(), control.end(), at,
                                      [](size_t position, const TextRange& r) { return position < r.end; });
  const size_t control_end = range != control.end() && range->begin <= at ? range->end : 0;
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (size_t end = at; end < text.size();) {
    const auto child = children_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[end]));
    if (child == children_.end()) break;
    node = child->second;
    ++end;
    if (ends_[node] < 0) continue;
    const AddedToken& token = tokens_[static_cast<size_t>(ends_[node])];
    if (token.special && end > control_end) continue;
    if (token.single_word && !stands_alone(text, {at, end})) continue;
    longest = &token;
  }
  return longest;
}

std::vector<AddedTokens::Match> AddedTokens::find(std::string_view text,
                                                  std::span<const TextRange> control) const {
  std::vector<Match> matches;
  if (empty()) return matches;
  size_t done = 0;  // end of the last match
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token =
        begins_[static_cast<unsigned char>(text[at])] ? longest_at(text, at, control) : nullptr;
    if (!token) {
      ++at;
      continue;
    }
    TextRange range{at, at + token->content.size()};
    if (token->left_strip) range.begin = white_space_begin(text, at, done);
    if (token->right_strip) range.end = white_space_end(text, range.end);
    matches.push_back({range, token->id});
    at = done = range.end;
  }
  return matches;
}

}  // namespace sinklora
