// A tokenizer whose ids stand for given pieces, one after another in the text; the first is a special token.
#pragma once

#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace sinklora::test {

class PieceTokenizer : public Tokenizer {
 public:
  explicit PieceTokenizer(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {
    vocab_size = static_cast<int64_t>(pieces_.size());
  }
  std::vector<int32_t> encode(std::string_view, bool = false) const override { return {}; }
  std::string decode(std::span<const int32_t> ids, bool keep_special = false) const override {
    decoded += static_cast<int64_t>(ids.size());
    std::string text;
    for (const int32_t id : ids)
      if (id != 0 || keep_special) text += pieces_[static_cast<size_t>(id)];
    return text;
  }
  int32_t id_of(std::string_view) const override { return -1; }
  std::string piece(int32_t id) const override { return pieces_[static_cast<size_t>(id)]; }

  mutable int64_t decoded = 0;  // ids

 private:
  std::vector<std::string> pieces_;
};

}  // namespace sinklora::test
