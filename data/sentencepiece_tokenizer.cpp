// LLaMA-2's tokenizer.model through the sentencepiece library. Ids equal the library's own and those of the
// tokenizer.json made from the same model: a space is put in front of a text and of what follows a special
// token. (transformers 5 differs where a text begins with a space, which it swallows, and behind special
// tokens.)
//
// Bytes that are not well-formed UTF-8 (lone surrogates included), which the library would replace by U+FFFD,
// become byte pieces; NUL is a character like any other. So decode(encode(x)) == x for all bytes, except that
// U+2581 comes back as a space, what follows an ordinary added token gets one, and for models that normalize
// their text (LLaMA's do not).
#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/hash.h"
#include "data/metaspace.h"
#include "data/sentencepiece_model.h"
#include "data/utf8.h"
#include "data/vocabulary_tokenizer.h"
#include "data/word_cache.h"

namespace sinklora {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;  // the library counts in int

// U+10FFFF, a character of no vocabulary: in front of a text it takes the dummy space and merges with
// nothing.
constexpr std::string_view kBarrier = "\xF4\x8F\xBF\xBF";

class SentencePieceTokenizer : public VocabularyTokenizer {
 public:
  SentencePieceTokenizer(std::string_view bytes, const std::string& source) {
    const SentencePieceModel model = read_sentencepiece_model(bytes, source);
    const auto status = library_.LoadFromSerializedProto({bytes.data(), bytes.size()});
    if (!status.ok()) fail_input("{}: the sentencepiece library refuses it: {}", source, status.ToString());
    if (library_.GetPieceSize() != static_cast<int>(model.pieces.size()))
      fail_input("{}: the sentencepiece library reads {} pieces of {}", source, library_.GetPieceSize(),
                 model.pieces.size());
    kind = "sentencepiece";
    add_bos = true;
    sha256 = sinklora::sha256(std::as_bytes(std::span(bytes)));
    read_pieces(model, source);
    bos_id = library_.bos_id(), eos_id = library_.eos_id(), pad_id = library_.pad_id();
    strips_first_space_ = model.add_dummy_prefix;
    const bool plain = model.add_dummy_prefix && model.escape_whitespaces &&
                       !model.remove_extra_whitespaces && !model.has_charsmap;
    splits_at_spaces_ =
        plain && std::none_of(model.pieces.begin(), model.pieces.end(),
                              [](const auto& piece) { return has_inner_metaspace(piece.text); });
    library_encode(kBarrier, barrier_ids_);
    std::array<int32_t, 4> barrier_bytes;
    for (size_t i = 0; i < 4; ++i) barrier_bytes[i] = byte_ids_[static_cast<unsigned char>(kBarrier[i])];
    if (!std::ranges::equal(std::span(barrier_ids_).last(std::min<size_t>(4, barrier_ids_.size())),
                            barrier_bytes))
      fail_input("{}: its normalizer or vocabulary claims U+10FFFF, which is no character", source);
  }

 private:
  void read_pieces(const SentencePieceModel& model, const std::string& source) {
    for (size_t i = 0; i < model.pieces.size(); ++i) {
      const auto& [text, type] = model.pieces[i];
      const auto id = static_cast<int32_t>(i);
      if (text.find(kBarrier) != std::string::npos)
        fail_input("{}: piece {} holds U+10FFFF, no character", source, i);
      if (type == PieceType::unknown || type == PieceType::control) {
        add_token({.content = text, .id = id}, source);
      } else if (type == PieceType::byte) {
        const int byte = byte_of_piece(text);
        byte_ids_[static_cast<size_t>(byte)] = id;
        add_entry(id, text, std::string(1, static_cast<char>(byte)), source);
      } else {
        add_entry(id, text, replace_all(text, kMetaspace, " "), source);
      }
    }
  }

  void library_encode(std::string_view text, std::vector<int32_t>& ids) const {
    if (text.size() > kMaxTextBytes)
      fail_input("a text of {} bytes is too long to tokenize at once; split it into pieces of at most {}",
                 text.size(), kMaxTextBytes);
    const auto status = library_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) fail_internal("the sentencepiece library cannot encode a text: {}", status.ToString());
  }

  // Of well-formed text.
  void encode_stretch(std::string_view text, bool continues, std::vector<int32_t>& ids) const {
    std::vector<int> found;
    if (continues) {
      library_encode(std::string(kBarrier) + std::string(text), found);
      ids.insert(ids.end(), found.begin() + static_cast<std::ptrdiff_t>(barrier_ids_.size()), found.end());
    } else {
      library_encode(text, found);
      ids.insert(ids.end(), found.begin(), found.end());
    }
  }

  // The same, a word at a time: the dummy space stands for the space that a word begins with.
  void encode_words(std::string_view text, bool continues, WordCache& words,
                    std::vector<int32_t>& ids) const {
    for_each_spaced_word(text, " ", false, [&](std::string_view word) {
      const bool first = word.data() == text.data();
      if (first && !(continues && word.starts_with(' '))) return encode_stretch(word, continues, ids);
      words.append(word, ids, [&](std::string_view unseen, std::vector<int32_t>& out) {
        if (unseen == " ") return encode_stretch(unseen, true, out);
        encode_stretch(unseen.substr(1), false, out);
      });
    });
  }

  void encode_text(std::string_view text, Place place, std::vector<int32_t>& ids) const override {
    bool continues = place == Place::continuing;
    WordCache words;
    for_each_utf8_run(text, [&](std::string_view run, bool well_formed) {
      if (well_formed && splits_at_spaces_) {
        encode_words(run, continues, words, ids);
      } else if (well_formed) {
        encode_stretch(run, continues, ids);
      } else {
        if (!continues)
          ids.insert(ids.end(), barrier_ids_.begin(), barrier_ids_.end() - 4);  // the dummy space
        for (const char c : run) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      }
      continues = true;
    });
  }

  sentencepiece::SentencePieceProcessor library_;
  std::array<int32_t, 256> byte_ids_{};
  std::vector<int32_t>
      barrier_ids_;                // of kBarrier alone: the dummy space, where there is one, and four bytes
  bool splits_at_spaces_ = false;  // no token crosses from one word into the next
};

}  // namespace

std::unique_ptr<VocabularyTokenizer> parse_sentencepiece(std::string_view bytes, const std::string& source) {
  return std::make_unique<SentencePieceTokenizer>(bytes, source);
}

}  // namespace sinklora
