// A flat file of token ids: LongLoRA's headerless uint16 stream, or llm.c's .bin with its header.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/files.h"

namespace sinklora {

// llm.c begins with 256 int32: magic, version, number of tokens. Magic 20240520 version 1 holds uint16, magic
// 20240801 version 7 holds uint32. Any other beginning is a token of uint16; what cannot be such a stream is refused.
class TokenStream {
 public:
  explicit TokenStream(const std::filesystem::path& path);

  int64_t size() const { return size_; }  // tokens
  // Tokens [offset, offset + count); ids outside [0, vocab_size) are refused (0: unknown, any id goes).
  std::vector<int32_t> read(int64_t offset, int64_t count, int64_t vocab_size) const;
  int64_t token_bytes() const { return token_bytes_; }
  // Throws Error(input) where it holds no token, or half of one at the end.
  void expect_whole() const;
  std::string describe() const;  // what the format is, and a half token at the end if there is one
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  ReadFile file_;
  int64_t header_bytes_ = 0, token_bytes_ = 2, size_ = 0, rest_bytes_ = 0;
};

}  // namespace sinklora
