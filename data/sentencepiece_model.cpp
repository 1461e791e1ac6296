#include "data/sentencepiece_model.h"

#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "data/utf8.h"

namespace sinklora {
namespace {

constexpr size_t kMaxPieces = size_t{1} << 20;
constexpr size_t kMaxPieceBytes = 1024;
constexpr size_t kMaxCharsmapBytes = size_t{1} << 22;
constexpr size_t kMaxReplacementBytes = 1024;
constexpr uint64_t kModelTypeBpe = 2;

// The fields of one protobuf message, in order. Groups, which alone could nest without a length, are refused.
class Fields {
 public:
  Fields(std::string_view bytes, const std::string& source) : rest_(bytes), source_(source) {}

  bool next() {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    number = tag >> 3;
    wire_type = static_cast<int>(tag & 7);
    if (number == 0) broken("a field of number 0");
    switch (wire_type) {
      case 0:
        value = varint();
        break;
      case 1:
        bytes_ = take(8);
        break;
      case 2:
        bytes_ = take(varint());
        break;
      case 5:
        bytes_ = take(4);
        break;
      default:
        broken("an unknown kind of field");
    }
    return true;
  }
  uint64_t number = 0, value = 0;  // the value of a varint field
  int wire_type = 0;

  uint64_t integer() const {
    if (wire_type != 0) broken("a field of the wrong kind");
    return value;
  }
  std::string_view bytes() const {
    if (wire_type != 2) broken("a field of the wrong kind");
    return bytes_;
  }
  float real() const {
    if (wire_type != 5) broken("a field of the wrong kind");
    uint32_t bits = 0;
    for (int i = 3; i >= 0; --i)
      bits = bits << 8 | static_cast<unsigned char>(bytes_[static_cast<size_t>(i)]);
    return std::bit_cast<float>(bits);
  }

 private:
  [[noreturn]] void broken(const char* what) const {
    fail_input("{}: not a sentencepiece model: {}, {} bytes before the end of its message", source_, what,
               rest_.size());
  }
  uint64_t varint() {
    uint64_t result = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) broken("it ends inside a number");
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      result |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return result;
    }
    broken("a number of more than 64 bits");
  }
  std::string_view take(uint64_t count) {
    if (count > rest_.size()) broken("it ends inside a field");
    const auto taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_, bytes_;
  const std::string& source_;
};

SentencePieceModel::Piece read_piece(std::string_view message, size_t id, const std::string& source) {
  SentencePieceModel::Piece piece;
  for (Fields field(message, source); field.next();) {
    if (field.number == 1) piece.text = field.bytes();
    if (field.number == 2 && !std::isfinite(field.real()))
      fail_input("{}: piece {} has no finite score", source, id);
    if (field.number == 3) piece.type = static_cast<PieceType>(field.integer());
  }
  if (piece.text.empty() || piece.text.size() > kMaxPieceBytes)
    fail_input("{}: piece {} has {} bytes; 1 to {} are read", source, id, piece.text.size(), kMaxPieceBytes);
  if (!is_utf8(piece.text) || piece.text.find('\0') != std::string::npos)
    fail_input("{}: piece {} is not UTF-8 text", source, id);
  if (piece.type < PieceType::normal || piece.type > PieceType::byte)
    fail_input("{}: piece {} (\"{}\") has the unknown type {}", source, id, piece.text,
               static_cast<uint64_t>(piece.type));
  return piece;
}

void check_pieces(const std::vector<SentencePieceModel::Piece>& pieces, const std::string& source) {
  std::unordered_set<std::string_view> seen;
  std::array<bool, 256> bytes{};
  size_t unknowns = 0;
  for (const auto& [text, type] : pieces) {
    if (!seen.insert(text).second) fail_input("{}: piece \"{}\" occurs twice", source, text);
    unknowns += type == PieceType::unknown;
    if (type != PieceType::byte) continue;
    const int byte = byte_of_piece(text);
    if (byte < 0) fail_input("{}: byte piece \"{}\" should look like <0x41>", source, text);
    bytes[static_cast<size_t>(byte)] = true;
  }
  if (unknowns != 1) fail_input("{}: {} pieces stand for unknown text; exactly one must", source, unknowns);
  for (int byte = 0; byte < 256; ++byte)
    if (!bytes[static_cast<size_t>(byte)])
      fail_input("{}: byte piece <0x{:02X}> is missing; models without byte fallback are not supported",
                 source, byte);
}

// The charsmap is a size, a double-array trie of that many bytes, and replacement strings, each ended by a
// NUL, at which the trie's leaves point. The library follows both without looking at their bounds; so every
// state that any text can reach is visited here.
void check_charsmap(std::string_view map, const std::string& source) {
  const auto broken = [&](const char* what) { fail_input("{}: its normalizer's charsmap {}", source, what); };
  const auto word_at = [&](size_t byte) {
    uint32_t word = 0;
    for (size_t i = 4; i-- > 0;) word = word << 8 | static_cast<unsigned char>(map[byte + i]);
    return word;
  };
  if (map.size() < 8 || map.size() > kMaxCharsmapBytes) broken("is too short or too long");
  const size_t trie_bytes = word_at(0);
  if (trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes > map.size() - 4)
    broken("gives its trie an impossible size");
  const std::string_view replacements = map.substr(4 + trie_bytes);
  if (replacements.empty() || replacements.back() != '\0') broken("has replacements without an end");
  const size_t states = trie_bytes / 4;
  std::vector<bool> seen(states);
  std::vector<size_t> open{0};
  while (!open.empty()) {
    const size_t state = open.back();
    open.pop_back();
    const uint32_t unit = word_at(4 + 4 * state);
    const size_t offset = size_t{unit >> 10} << ((unit & (1u << 9)) >> 6);
    const size_t base = state ^ offset;
    if ((base | 0xFF) >= states) broken("has a trie that points outside itself");
    const bool has_leaf = (unit >> 8 & 1) != 0;
    if (has_leaf) {
      const size_t value = word_at(4 + 4 * base) & 0x7FFFFFFFu;
      if (value >= replacements.size()) broken("points outside its replacements");
      if (replacements.find('\0', value) - value > kMaxReplacementBytes)
        broken("has an overlong replacement");
    }
    for (size_t label = 0; label < 256; ++label) {
      const size_t child = base ^ label;
      if ((word_at(4 + 4 * child) & (1u << 31 | 0xFF)) != label || seen[child]) continue;
      seen[child] = true;
      open.push_back(child);
    }
  }
}

void read_normalizer(std::string_view message, SentencePieceModel& model, const std::string& source) {
  for (Fields field(message, source); field.next();) {
    if (field.number == 2 && !field.bytes().empty()) {
      check_charsmap(field.bytes(), source);
      model.has_charsmap = true;
    }
    if (field.number == 3) model.add_dummy_prefix = field.integer() != 0;
    if (field.number == 4) model.remove_extra_whitespaces = field.integer() != 0;
    if (field.number == 5) model.escape_whitespaces = field.integer() != 0;
  }
}

void check_trainer(std::string_view message, const std::string& source) {
  uint64_t model_type = 1;  // unigram, where the file is silent
  bool byte_fallback = false;
  for (Fields field(message, source); field.next();) {
    if (field.number == 3) model_type = field.integer();
    if (field.number == 24 && field.integer() != 0)
      fail_input("{}: treat_whitespace_as_suffix is not supported", source);
    if (field.number == 35) byte_fallback = field.integer() != 0;
  }
  if (model_type != kModelTypeBpe)
    fail_input("{}: a sentencepiece model of type {}; only BPE (type {}), as LLaMA has, is supported", source,
               model_type, kModelTypeBpe);
  if (!byte_fallback) fail_input("{}: models without byte fallback are not supported", source);
}

}  // namespace

int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  const int high = digit(piece[3]), low = digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& source) {
  SentencePieceModel model;
  std::optional<std::string_view> trainer, normalizer;
  const auto set_once = [&](std::optional<std::string_view>& part, std::string_view message) {
    if (part) fail_input("{}: not a sentencepiece model: one of its settings occurs twice", source);
    part = message;
  };
  for (Fields field(bytes, source); field.next();) {
    if (field.number == 1) {
      if (model.pieces.size() == kMaxPieces) fail_input("{}: more than {} pieces", source, kMaxPieces);
      model.pieces.push_back(read_piece(field.bytes(), model.pieces.size(), source));
    } else if (field.number == 2) {
      set_once(trainer, field.bytes());
    } else if (field.number == 3) {
      set_once(normalizer, field.bytes());
    } else if (field.number == 4) {
      fail_input("{}: it carries self-test data, which no LLaMA tokenizer does", source);
    } else if (field.number == 5) {
      SentencePieceModel unused;  // decoding is ours, but the library loads its denormalizer all the same
      read_normalizer(field.bytes(), unused, source);
    } else {
      fail_input("{}: not a sentencepiece model: an unknown field of number {}", source, field.number);
    }
  }
  if (!trainer || !normalizer)
    fail_input("{}: not a sentencepiece model: it has no trainer or normalizer settings", source);
  check_trainer(*trainer, source);
  read_normalizer(*normalizer, model, source);
  check_pieces(model.pieces, source);
  return model;
}

}  // namespace sinklora
