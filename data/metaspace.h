// U+2581, which stands for a space in the vocabularies of the sentencepiece family.
#pragma once

#include <string>
#include <string_view>

namespace sinklora {

inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";

inline std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (size_t begin = 0;;) {
    const size_t at = text.find(from, begin);
    result += text.substr(begin, at - begin);
    if (at == std::string_view::npos) return result;
    result += to;
    begin = at + from.size();
  }
}

// Whether U+2581 stands behind another character somewhere in `piece`.
inline bool has_inner_metaspace(std::string_view piece) {
  while (piece.starts_with(kMetaspace)) piece.remove_prefix(kMetaspace.size());
  return piece.find(kMetaspace) != std::string_view::npos;
}

// Calls word(stretch) for the stretches of `text` that begin at a `space` which follows none. Where no
// vocabulary entry holds a space behind another character, no token crosses from one stretch to the next.
// `every`: at any space.
template <class Word>
void for_each_spaced_word(std::string_view text, std::string_view space, bool every, Word word) {
  size_t begin = 0;
  for (size_t at = text.find(space, 1); at != std::string_view::npos; at = text.find(space, at + 1)) {
    const std::string_view before = text.substr(0, at);
    if (!every && (before.ends_with(space) || before.ends_with(kMetaspace))) continue;
    word(text.substr(begin, at - begin));
    begin = at;
  }
  if (begin < text.size()) word(text.substr(begin));
}

}  // namespace sinklora
