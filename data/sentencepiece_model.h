// A tokenizer.model read as an untrusted protobuf message before the sentencepiece library sees it: that
// library crashes on some broken models (endless pieces, a charsmap whose trie points outside itself).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sinklora {

enum class PieceType : uint64_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

struct SentencePieceModel {
  struct Piece {
    std::string text;
    PieceType type = PieceType::normal;
  };
  std::vector<Piece> pieces;  // by id
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool has_charsmap = false;  // text is normalized: not every byte comes back
};

// Refuses, naming `source` and the place, everything but a BPE model with byte fallback whose parts hold
// together.
SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& source);

// The value of "<0x41>" (two upper-case hexadecimal digits, nothing else), or -1.
int byte_of_piece(std::string_view piece);

}  // namespace sinklora
