// What every kind of tokenizer shares: the table of its entries, the special tokens, and decoding. A kind
// adds how it splits text that holds no special token.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/added_tokens.h"
#include "data/tokenizer.h"

namespace sinklora {

// Where a stretch of text stands. LLaMA-2 puts a space in front of the first two.
enum class Place { beginning, after_special, continuing };

class VocabularyTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, bool parse_special) const override;
  EncodedSegments encode_segments(std::span<const Segment> segments) const override;
  std::string decode(std::span<const int32_t> ids, bool keep_special) const override;
  int32_t id_of(std::string_view piece) const override;
  std::string piece(int32_t id) const override;

  // An entry that the vocabulary has already must have the same id. Throws Error(input) naming `source`.
  void add_token(const AddedToken& token, const std::string& source);
  bool is_added(int32_t id) const { return entry(id).added; }  // and no piece of ordinary text

 protected:
  // Appends the ids of `text`, which holds no special token.
  virtual void encode_text(std::string_view text, Place place, std::vector<int32_t>& ids) const = 0;

  // One entry: its name in the vocabulary and the bytes it stands for.
  void add_entry(int32_t id, std::string name, std::string bytes, const std::string& source);
  // Of an added token that encode_text looks for itself.
  void add_unmatched_token(const AddedToken& token, std::string bytes, const std::string& source);

  bool strips_first_space_ = false;  // decoded text loses the space that encoding put in front of it

 private:
  struct Entry {
    std::string name, bytes;
    bool present = false, special = false, added = false;
  };
  void encode_run(std::string_view text, std::span<const TextRange> control, Place& place,
                  std::vector<int32_t>& ids) const;
  const Entry& entry(int32_t id) const;

  std::vector<Entry> entries_;  // by id
  std::unordered_map<std::string, int32_t> ids_;
  AddedTokens added_;
};

// The kinds, from the bytes of their files; `source` names the file in errors.
std::unique_ptr<VocabularyTokenizer> parse_sentencepiece(std::string_view bytes, const std::string& source);
std::unique_ptr<VocabularyTokenizer> parse_tokenizer_json(std::string_view json, const std::string& source);
std::unique_ptr<VocabularyTokenizer> make_byte_tokenizer();

}  // namespace sinklora
