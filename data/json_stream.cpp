#include "data/json_stream.h"

#include "base/error.h"
#include "base/json.h"

namespace sinklora {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 16;
constexpr size_t kMaxElementBytes = size_t{1} << 30;

bool is_space(int byte) { return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r'; }

}  // namespace

JsonElements::JsonElements(Read read, std::string source, int64_t offset, Form form)
    : read_(std::move(read)),
      source_(std::move(source)),
      form_(form),
      buffer_offset_(offset),
      offset_(offset) {}

int JsonElements::peek() {
  if (offset_ == buffer_offset_ + static_cast<int64_t>(buffer_.size())) {
    buffer_offset_ = offset_;
    buffer_.resize(kPieceBytes);
    buffer_.resize(static_cast<size_t>(read_(offset_, std::as_writable_bytes(std::span(buffer_)))));
    if (buffer_.empty()) return -1;
  }
  return static_cast<unsigned char>(buffer_[static_cast<size_t>(offset_ - buffer_offset_)]);
}

int JsonElements::skip_space() {
  while (is_space(peek())) take();
  return peek();
}

// Moves the next `count` bytes of the buffer into the element.
void JsonElements::append(std::string& element, size_t count) {
  if (element.size() + count > kMaxElementBytes)
    fail_input("{}: the element at byte {} is longer than {} bytes; one record must fit into memory", source_,
               element_offset_, kMaxElementBytes);
  element.append(buffer_, static_cast<size_t>(offset_ - buffer_offset_), count);
  offset_ += static_cast<int64_t>(count);
}

// The first element: skips a byte order mark and finds out whether the elements lie in an array.
void JsonElements::begin() {
  if (peek() == 0xEF)
    for (const int mark : {0xEF, 0xBB, 0xBF}) {
      if (peek() != mark) fail_input("{}: begins with half a byte order mark; UTF-8 is wanted", source_);
      take();
    }
  if (skip_space() == '[') {
    form_ = Form::array;
    take();
  } else {
    form_ = Form::lines;
  }
}

bool JsonElements::next(std::string& element) {
  if (ended_) return false;
  element.clear();
  const bool resumed = form_ != Form::detect && first_;
  if (form_ == Form::detect) begin();
  int byte = skip_space();
  if (form_ == Form::array && (!first_ || byte == ']') && !resumed) {
    if (byte == ']') {
      take();
      if (skip_space() != -1)
        fail_input("{}: something follows the array's end, at byte {}", source_, offset_);
      ended_ = true;
      return false;
    }
    if (byte != ',' && byte != -1) fail_input("{}: ',' or ']' is wanted at byte {}", source_, offset_);
    if (byte == ',') {
      take();
      byte = skip_space();
    }
  }
  first_ = false;
  if (byte == -1) {
    if (form_ == Form::array) fail_input("{}: ends at byte {}, inside the array", source_, offset_);
    ended_ = true;
    return false;
  }
  element_offset_ = offset_;
  if (byte == '{' || byte == '[')
    read_container(element);
  else if (byte == '"')
    read_string(element);
  else
    read_word(element);
  return true;
}

void JsonElements::read_container(std::string& element) {
  // In an array the elements are one level down already.
  const int deepest = kMaxJsonDepth - (form_ == Form::array ? 1 : 0);
  int depth = 0;
  do {
    const int byte = peek();
    if (byte == -1)
      fail_input("{}: ends inside the element that begins at byte {}", source_, element_offset_);
    if (byte == '"') {
      read_string(element);
      continue;
    }
    if (byte == '{' || byte == '[') {
      if (++depth > deepest)
        fail_input("{}: JSON nesting is deeper than {} levels at byte {}; refusing to read it", source_,
                   kMaxJsonDepth, offset_);
    } else if (byte == '}' || byte == ']') {
      --depth;
    }
    append(element, 1);
  } while (depth > 0);
}

void JsonElements::read_string(std::string& element) {
  append(element, 1);
  for (;;) {
    const int byte = peek();
    if (byte == -1)
      fail_input("{}: ends inside the string of the element at byte {}", source_, element_offset_);
    if (byte == '"') return append(element, 1);
    if (byte == '\\') {
      append(element, 1);
      if (peek() != -1) append(element, 1);
      continue;
    }
    const char* here = buffer_.data() + (offset_ - buffer_offset_);
    const char* stop = here;
    while (stop != buffer_.data() + buffer_.size() && *stop != '"' && *stop != '\\') ++stop;
    append(element, static_cast<size_t>(stop - here));
  }
}

// A number, true, false or null: whatever reaches to the next separator.
void JsonElements::read_word(std::string& element) {
  for (int byte = peek(); byte != -1 && byte != ',' && byte != ']' && byte != '}' && byte != '"' &&
                          byte != '[' && byte != '{' && !is_space(byte);
       byte = peek())
    append(element, 1);
  if (element.empty()) fail_input("{}: no JSON value at byte {}", source_, offset_);
}

}  // namespace sinklora
