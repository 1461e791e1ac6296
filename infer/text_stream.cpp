#include "infer/text_stream.h"

#include <algorithm>

#include "base/error.h"
#include "data/utf8.h"

namespace sinklora {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Whether more bytes could make a well-formed character of these. After E0 and F0 the next byte must be high,
// after ED and F4 low; the others take any continuation.
bool begins_character(std::string_view bytes) {
  for (const char continuation : {'\x80', '\xBF'}) {
    std::string whole(bytes);
    while (whole.size() < 4) {
      whole += continuation;
      if (utf8_length(whole, 0) == whole.size()) return true;
    }
  }
  return false;
}

// Moves whole characters from `bytes` to the result. Ill-formed ones become U+FFFD, one for each longest
// beginning of a character (as Unicode recommends and Python does); an unfinished one at the end stays,
// unless this is the `end`.
std::string take_characters(std::string& bytes, bool end) {
  std::string text;
  size_t at = 0;
  while (at < bytes.size()) {
    if (const size_t length = utf8_length(bytes, at); length > 0) {
      text.append(bytes, at, length);
      at += length;
      continue;
    }
    size_t begun = 1;
    while (at + begun < bytes.size() && begins_character(std::string_view(bytes).substr(at, begun + 1)))
      ++begun;
    if (!end && at + begun == bytes.size() && begins_character(std::string_view(bytes).substr(at))) break;
    text += kReplacement;
    at += begun;
  }
  bytes.erase(0, at);
  return text;
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops)
    : tokenizer_(tokenizer), stops_(std::move(stops)) {
  for (const std::string& stop : stops_)
    if (stop.empty()) fail_usage("--stop: an empty stop string would end every reply at once");
}

void TextStream::reset() {
  anchor_.clear();
  bytes_.clear();
  held_.clear();
  stopped_ = false;
}

// decode() of a text may take a space from its beginning, so a token is decoded behind another one. The one
// that lost the space has a text when it stands behind itself; special tokens have none.
std::string TextStream::text_of(int32_t id) {
  const auto decode = [&](std::vector<int32_t> ids) { return tokenizer_.decode(ids); };
  if (!anchor_.empty()) return decode({anchor_[0], id}).substr(anchor_bytes_);
  if (decode({id, id}).empty()) return "";
  anchor_ = {id};
  std::string text = decode(anchor_);
  anchor_bytes_ = text.size();
  return text;
}

std::string TextStream::release() {
  // The stop string that is complete first, the longest of those that end there: how the text was cut into
  // tokens does not matter.
  size_t stop_begin = std::string::npos, stop_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < stop_end || (end == stop_end && begin < stop_begin)) stop_begin = begin, stop_end = end;
  }
  size_t certain = held_.size();
  if (stop_end != std::string::npos) {
    stopped_ = true;
    certain = stop_begin;
  } else {
    for (const std::string& stop : stops_)
      for (size_t length = std::min(stop.size() - 1, held_.size()); length > 0; --length)
        if (held_.ends_with(std::string_view(stop).substr(0, length))) {
          certain = std::min(certain, held_.size() - length);
          break;
        }
  }
  std::string text = held_.substr(0, certain);
  held_.erase(0, stopped_ ? held_.size() : certain);
  return text;
}

std::string TextStream::push(int32_t id) {
  if (stopped_) return "";
  bytes_ += text_of(id);
  held_ += take_characters(bytes_, false);
  return release();
}

std::string TextStream::finish() {
  if (stopped_) return "";
  held_ += take_characters(bytes_, true);
  std::string text = release();  // U+FFFD may complete a stop string
  if (!stopped_) text += held_;
  held_.clear();
  return text;
}

}  // namespace sinklora
