// Splits a JSON file too large to parse at once into its top-level elements, in memory bounded by one
// element.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

namespace sinklora {

// The input is one array, whose elements come out, or a sequence of values (JSON Lines); the first character
// decides. Only what is needed to find the ends is understood (strings, escapes, nesting): give each element
// to parse_json. Every element parses exactly when the whole file would.
class JsonElements {
 public:
  // Reads up to out.size() bytes at `offset`; 0 at the end.
  using Read = std::function<int64_t(int64_t offset, std::span<std::byte> out)>;
  enum class Form { detect, array, lines };

  // `offset` and `form`: where to go on, as given by element_offset() and form() before; the element there
  // comes first.
  JsonElements(Read read, std::string source, int64_t offset = 0, Form form = Form::detect);

  bool next(std::string& element);  // false at the end; throws Error(input) with the byte where it went wrong
  int64_t element_offset() const { return element_offset_; }  // where the last element begins
  Form form() const { return form_; }

 private:
  int peek();  // the byte at offset_, -1 at the end
  void take() { ++offset_; }
  int skip_space();
  void begin();
  void read_container(std::string& element);
  void read_string(std::string& element);
  void read_word(std::string& element);
  void append(std::string& element, size_t count);

  Read read_;
  std::string source_;
  Form form_;
  std::string buffer_;  // bytes [buffer_offset_, buffer_offset_ + buffer_.size()) of the file
  int64_t buffer_offset_ = 0, offset_ = 0, element_offset_ = 0;
  bool first_ = true, ended_ = false;
};

}  // namespace sinklora
