// Token ids in, text out, as far as it is certain: whole characters only, and nothing that may yet turn out
// to be the beginning of a stop string. Each token costs what its own text costs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace sinklora {

class TextStream {
 public:
  // A reply ends where the first of `stops` is complete; it is not part of the text. Throws Error(usage) on
  // an empty one.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops = {});

  // Text that is now certain: after all of a reply, what decode() gives, with U+FFFD for ill-formed bytes.
  std::string push(int32_t id);
  // The end of the reply: what was held back.
  std::string finish();
  bool stopped() const { return stopped_; }  // a stop string came
  int64_t vocab_size() const { return tokenizer_.vocab_size; }
  // Begins another reply.
  void reset();

 private:
  std::string text_of(int32_t id);
  std::string release();  // what of held_ is certain, or ends at a stop string

  const Tokenizer& tokenizer_;
  std::vector<std::string> stops_;
  std::vector<int32_t> anchor_;  // the reply's first token with a text of its own; none before it came
  size_t anchor_bytes_ = 0;      // of its text
  std::string bytes_;            // the beginning of a character
  std::string held_;             // whole characters that may be the beginning of a stop string
  bool stopped_ = false;
};

}  // namespace sinklora
