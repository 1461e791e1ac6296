#include "data/utf8.h"

namespace sinklora {
namespace {

unsigned byte_at(std::string_view text, size_t at) { return static_cast<unsigned char>(text[at]); }

}  // namespace

size_t utf8_length(std::string_view text, size_t at) {
  const unsigned lead = byte_at(text, at);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF5 ? 0 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 0;
  if (length == 0 || text.size() - at < length) return 0;
  const unsigned second = byte_at(text, at + 1);
  const unsigned lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;  // below: an overlong form
  const unsigned highest = lead == 0xED   ? 0x9F
                           : lead == 0xF4 ? 0x8F
                                          : 0xBF;  // above: a surrogate, or > U+10FFFF
  if (second < lowest || second > highest) return 0;
  for (size_t i = 2; i < length; ++i)
    if ((byte_at(text, at + i) & 0xC0) != 0x80) return 0;
  return length;
}

char32_t utf8_code_point(std::string_view text, size_t at) {
  const unsigned lead = byte_at(text, at);
  if (lead < 0x80) return lead;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  char32_t character = lead & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) character = character << 6 | (byte_at(text, at + i) & 0x3F);
  return character;
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

bool is_white_space(char32_t character) {
  return (character >= 9 && character <= 13) || character == ' ' || character == 0x85 || character == 0xA0 ||
         character == 0x1680 || (character >= 0x2000 && character <= 0x200A) || character == 0x2028 ||
         character == 0x2029 || character == 0x202F || character == 0x205F || character == 0x3000;
}

size_t previous_character(std::string_view text, size_t at) {
  size_t begin = at - 1;
  while (begin > 0 && at - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return utf8_length(text, begin) == at - begin ? begin : at - 1;
}

size_t white_space_end(std::string_view text, size_t at) {
  while (at < text.size()) {
    const size_t length = utf8_length(text, at);
    if (length == 0 || !is_white_space(utf8_code_point(text, at))) break;
    at += length;
  }
  return at;
}

size_t white_space_begin(std::string_view text, size_t at, size_t lowest) {
  while (at > lowest) {
    const size_t begin = previous_character(text, at);
    if (begin < lowest || utf8_length(text, begin) == 0 || !is_white_space(utf8_code_point(text, begin)))
      break;
    at = begin;
  }
  return at;
}

}  // namespace sinklora
