// Byte-pair encoding from a Hugging Face tokenizer.json, of both kinds that tokenizer_json.h reads. Ids equal
// those of Hugging Face's tokenizers.
//
// Byte-level: text is cut into words by regular expressions; a stretch of bytes that are not well-formed
// UTF-8 (lone surrogates included) is a word by itself. decode(encode(x)) == x for all bytes the vocabulary
// has a symbol for; the others are dropped, as Hugging Face does (trained vocabularies may lack bytes that
// UTF-8 never uses).
//
// Sentencepiece style: spaces are U+2581, ill-formed bytes and characters without a symbol become byte
// pieces. decode(encode(x)) == x for all bytes, except that U+2581 comes back as a space and that a Metaspace
// step loses one space of a text that begins with a space.
#include "data/bpe_merges.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/hash.h"
#include "data/metaspace.h"
#include "data/pre_tokenizer.h"
#include "data/sentencepiece_model.h"
#include "data/tokenizer_json.h"
#include "data/utf8.h"
#include "data/vocabulary_tokenizer.h"
#include "data/word_cache.h"

namespace sinklora {
namespace {

// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100, U+0101 ... in their
// order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      bytes_[printable ? byte : next++] = static_cast<int16_t>(byte);
    }
  }
  // Appends the bytes that `name` spells; false when a character is not of the alphabet.
  bool spell(std::string_view name, std::string& bytes) const {
    for (size_t at = 0; at < name.size();) {
      const size_t length = utf8_length(name, at);
      const char32_t character = length > 0 ? utf8_code_point(name, at) : bytes_.size();
      if (character >= bytes_.size() || bytes_[character] < 0) return false;
      bytes.push_back(static_cast<char>(bytes_[character]));
      at += length;
    }
    return true;
  }

 private:
  std::array<int16_t, 0x144> bytes_ = [] {
    std::array<int16_t, 0x144> none;
    none.fill(-1);
    return none;
  }();
};

struct Working {  // the memory of one call
  std::vector<int32_t> symbols;
  BpeMerges::Scratch merging;
};

class BpeTokenizer : public VocabularyTokenizer {
 public:
  BpeTokenizer(std::string_view json, const std::string& source)
      : BpeTokenizer(read_tokenizer_json(json, source), source) {
    sha256 = sinklora::sha256(std::as_bytes(std::span(json)));
  }

 private:
  BpeTokenizer(const BpeFile& file, const std::string& source)
      : pre_tokenizer_(file.splits, source),
        byte_level_(file.byte_level),
        fuse_unk_(file.fuse_unk),
        ignore_merges_(file.ignore_merges),
        prefix_(file.prefix),
        every_space_(file.words_apart) {
    kind = "bpe";
    strips_first_space_ = file.strips_first_space;
    byte_ids_.fill(-1);
    check_ids(file, source);
    for (const auto& [name, id] : file.vocab) add_vocabulary_entry(name, id, file, source);
    add_merges(file, source);
    if (!file.unk_token.empty()) {
      unk_id_ = id_of(file.unk_token);
      if (unk_id_ < 0) fail_input("{}: unk_token \"{}\" is not in the vocabulary", source, file.unk_token);
    }
    for (const AddedToken& token : file.added_tokens) add_added_token(token, file, source);
    bos_id = file.bos.empty() ? -1 : id_of(file.bos);
    if (bos_id < 0 && !file.bos.empty())
      fail_input("{}: the post-processor's \"{}\" is not in the vocabulary", source, file.bos);
    add_bos = bos_id >= 0;
  }

  // The table is as long as the highest id, which a few bytes of a hostile file could make anything.
  static void check_ids(const BpeFile& file, const std::string& source) {
    if (file.vocab.empty()) fail_input("{}: its vocabulary is empty", source);
    const size_t count = file.vocab.size() + file.added_tokens.size(), limit = 4 * count + 1024;
    const auto check = [&](const std::string& name, int32_t id) {
      if (static_cast<size_t>(id) >= limit)
        fail_input("{}: \"{}\" has token id {}, but there are {} entries", source, name, id, count);
    };
    for (const auto& [name, id] : file.vocab) check(name, id);
    for (const AddedToken& token : file.added_tokens) check(token.content, token.id);
  }

  void add_vocabulary_entry(const std::string& name, int32_t id, const BpeFile& file,
                            const std::string& source) {
    std::string bytes;
    if (byte_level_) {
      if (alphabet_.spell(name, bytes)) {
        if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
        if (ignore_merges_) whole_words_.emplace(bytes, id);
      } else {
        bytes = name;
      }
    } else {
      const int byte = file.byte_fallback ? byte_of_piece(name) : -1;
      if (byte >= 0) byte_ids_[static_cast<size_t>(byte)] = id;
      bytes = byte >= 0 ? std::string(1, static_cast<char>(byte)) : replace_all(name, kMetaspace, " ");
      if (!name.empty() && utf8_length(name, 0) == name.size())
        character_ids_.emplace(utf8_code_point(name, 0), id);
      if (ignore_merges_) whole_words_.emplace(name, id);
    }
    add_entry(id, name, std::move(bytes), source);
  }

  void add_merges(const BpeFile& file, const std::string& source) {
    bool crosses_words = false;
    for (const auto& [left, right] : file.merges) {
      const int32_t ids[] = {id_of(left), id_of(right), id_of(left + right)};
      if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0)
        fail_input("{}: model.merges[{}]: \"{}\" and \"{}\" and what they make must all be in the vocabulary",
                   source, merges_.size(), left, right);
      if (!merges_.add(ids[0], ids[1], ids[2]))
        fail_input("{}: model.merges[{}]: \"{}\" and \"{}\" are merged before already", source,
                   merges_.size(), left, right);
      crosses_words = crosses_words || has_inner_metaspace(left + right);
    }
    // Merges inside one word then never depend on another word, so words may be tokenized one by one.
    words_apart_ = every_space_ || (!crosses_words && !ignore_merges_ && character_ids_.contains(0x2581));
  }

  void add_added_token(const AddedToken& token, const BpeFile& file, const std::string& source) {
    if (token.content.empty()) fail_input("{}: an added token is empty", source);
    // Hugging Face looks for such tokens in normalized text, and normalizes their names too: U+2581 in front.
    // Special tokens it nearly always loads as not normalized, whatever this file says.
    if (!token.normalized || token.special || !file.normalizes) return add_token(token, source);
    if (prefix_ != BpeFile::Prefix::always && prefix_ != BpeFile::Prefix::none)
      fail_input(
          "{}: the added token \"{}\" is to be found in text that a normalizer and a Metaspace step change, "
          "which is not supported; set its \"normalized\" to false",
          source, token.content);
    AddedToken spaced = token;
    spaced.content = with_metaspaces(token.content, Place::beginning);
    spaced_tokens_.add(spaced);
    add_unmatched_token(token, replace_all(spaced.content, kMetaspace, " "), source);
  }

  // Symbols of a word of bytes.
  void spell_bytes(std::string_view word, std::vector<int32_t>& symbols) const {
    bool unknown_before = false;
    for (const char c : word) push_symbol(byte_ids_[static_cast<unsigned char>(c)], unknown_before, symbols);
  }
  // Symbols of a word of characters; each character or ill-formed byte without one falls back to its bytes'
  // pieces.
  void spell_characters(std::string_view word, std::vector<int32_t>& symbols) const {
    bool unknown_before = false;
    for (size_t at = 0; at < word.size();) {
      const size_t length = utf8_length(word, at);
      const auto known = length > 0 ? character_ids_.find(utf8_code_point(word, at)) : character_ids_.end();
      const std::string_view character = word.substr(at, std::max<size_t>(length, 1));
      at += character.size();
      if (known != character_ids_.end()) {
        push_symbol(known->second, unknown_before, symbols);
      } else if (std::ranges::all_of(character,
                                     [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; })) {
        for (const char c : character)
          push_symbol(byte_ids_[static_cast<unsigned char>(c)], unknown_before, symbols);
      } else {
        push_symbol(-1, unknown_before, symbols);
      }
    }
  }
  void push_symbol(int32_t id, bool& unknown_before, std::vector<int32_t>& symbols) const {
    const bool unknown = id < 0;
    if (!unknown)
      symbols.push_back(id);
    else if (unk_id_ >= 0 && !(fuse_unk_ && unknown_before))
      symbols.push_back(unk_id_);
    unknown_before = unknown;
  }

  void encode_word(std::string_view word, Working& working, std::vector<int32_t>& ids) const {
    if (ignore_merges_)
      if (const auto whole = whole_words_.find(std::string(word)); whole != whole_words_.end()) {
        ids.push_back(whole->second);
        return;
      }
    working.symbols.clear();
    if (byte_level_)
      spell_bytes(word, working.symbols);
    else
      spell_characters(word, working.symbols);
    merges_.apply(working.symbols, working.merging);
    ids.insert(ids.end(), working.symbols.begin(), working.symbols.end());
  }

  std::string with_metaspaces(std::string_view text, Place place) const {
    std::string result = replace_all(text, " ", kMetaspace);
    using Prefix = BpeFile::Prefix;
    const bool there = result.starts_with(kMetaspace);
    const bool wanted = prefix_ == Prefix::always || (prefix_ == Prefix::unless_there && !there) ||
                        (prefix_ == Prefix::beginning_unless_there && !there && place == Place::beginning);
    if (wanted && place != Place::continuing) result.insert(0, kMetaspace);
    return result;
  }

  void encode_text(std::string_view text, Place place, std::vector<int32_t>& ids) const override {
    Working working;
    WordCache cache;
    const auto tokenize = [&](std::string_view word, std::vector<int32_t>& out) {
      encode_word(word, working, out);
    };
    if (byte_level_) {
      PreTokenizer::Cutter cutter(pre_tokenizer_);
      for_each_utf8_run(text, [&](std::string_view run, bool well_formed) {
        if (!well_formed) return tokenize(run, ids);
        for (const std::string_view word : cutter.cut(run)) cache.append(word, ids, tokenize);
      });
    } else {
      const std::string spaced = with_metaspaces(text, place);
      size_t done = 0;
      const auto tokenize_until = [&](size_t end) {
        const std::string_view stretch = std::string_view(spaced).substr(done, end - done);
        if (words_apart_)
          for_each_spaced_word(stretch, kMetaspace, every_space_,
                               [&](std::string_view word) { cache.append(word, ids, tokenize); });
        else
          tokenize(stretch, ids);
      };
      for (const AddedTokens::Match& match : spaced_tokens_.find(spaced, {})) {
        tokenize_until(match.range.begin);
        ids.push_back(match.id);
        done = match.range.end;
      }
      tokenize_until(spaced.size());
    }
  }

  ByteAlphabet alphabet_;
  PreTokenizer pre_tokenizer_;
  BpeMerges merges_;
  AddedTokens spaced_tokens_;                            // those found in text whose spaces are U+2581
  std::array<int32_t, 256> byte_ids_{};                  // -1: the vocabulary has none
  std::unordered_map<char32_t, int32_t> character_ids_;  // entries of one character
  std::unordered_map<std::string, int32_t> whole_words_;
  bool byte_level_ = false, fuse_unk_ = false, ignore_merges_ = false;
  int32_t unk_id_ = -1;
  BpeFile::Prefix prefix_ = BpeFile::Prefix::none;
  bool every_space_ = false;  // each U+2581 begins a word; otherwise the first of several does
  bool words_apart_ = false;  // no token crosses from one word into the next
};

}  // namespace

std::unique_ptr<VocabularyTokenizer> parse_tokenizer_json(std::string_view json, const std::string& source) {
  return std::make_unique<BpeTokenizer>(json, source);
}

}  // namespace sinklora
