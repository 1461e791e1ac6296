// UTF-8 from files and users: what is well-formed (no surrogates, no overlong forms, nothing above U+10FFFF)
// and where.
#pragma once

#include <cstddef>
#include <string_view>

namespace sinklora {

struct TextRange {
  size_t begin = 0, end = 0;  // bytes
};

// Bytes of the well-formed character at text[at], or 0 when the bytes there are none.
size_t utf8_length(std::string_view text, size_t at);
// The code point at text[at], which must be well-formed.
char32_t utf8_code_point(std::string_view text, size_t at);
bool is_utf8(std::string_view text);
// Where the character (or ill-formed byte) that ends at `at` > 0 begins.
size_t previous_character(std::string_view text, size_t at);
// Unicode's White_Space property.
bool is_white_space(char32_t character);
// Where the white space that begins at `at` ends; where the white space that ends at `at` begins, at `lowest`
// or after.
size_t white_space_end(std::string_view text, size_t at);
size_t white_space_begin(std::string_view text, size_t at, size_t lowest);

// Calls run(bytes, well_formed) for each longest stretch of well-formed or of ill-formed bytes, in order.
template <class Run>
void for_each_utf8_run(std::string_view text, Run run) {
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    const bool well_formed = utf8_length(text, begin) > 0;
    while (end < text.size()) {
      const size_t length = utf8_length(text, end);
      if ((length > 0) != well_formed) break;
      end += well_formed ? length : 1;
    }
    run(text.substr(begin, end - begin), well_formed);
    begin = end;
  }
}

}  // namespace sinklora
