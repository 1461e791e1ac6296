#include "data/vocabulary_tokenizer.h"

#include "base/error.h"

namespace sinklora {
namespace {

constexpr int32_t kMaxVocabSize = 1 << 22;
constexpr size_t kMaxNameBytes = 1024;

}  // namespace

void VocabularyTokenizer::add_entry(int32_t id, std::string name, std::string bytes,
                                    const std::string& source) {
  if (id < 0 || id >= kMaxVocabSize)
    fail_input("{}: \"{}\" has token id {}; ids from 0 to {} are read", source, name, id, kMaxVocabSize - 1);
  if (name.empty() || name.size() > kMaxNameBytes)
    fail_input("{}: the entry of token id {} has {} bytes; 1 to {} are read", source, id, name.size(),
               kMaxNameBytes);
  if (static_cast<size_t>(id) >= entries_.size()) entries_.resize(static_cast<size_t>(id) + 1);
  Entry& entry = entries_[static_cast<size_t>(id)];
  if (entry.present)
    fail_input("{}: \"{}\" and \"{}\" have the same token id {}", source, entry.name, name, id);
  if (!ids_.try_emplace(name, id).second)
    fail_input("{}: \"{}\" occurs twice in the vocabulary", source, name);
  entry = {std::move(name), std::move(bytes), true};
  vocab_size = static_cast<int64_t>(entries_.size());
}

void VocabularyTokenizer::add_token(const AddedToken& token, const std::string& source) {
  add_unmatched_token(token, token.content, source);
  added_.add(token);
}

void VocabularyTokenizer::add_unmatched_token(const AddedToken& token, std::string bytes,
                                              const std::string& source) {
  const int32_t known = id_of(token.content);
  if (known >= 0 && known != token.id)
    fail_input("{}: the added token \"{}\" has id {}, but the vocabulary gives it {}", source, token.content,
               token.id, known);
  if (known < 0) add_entry(token.id, token.content, token.content, source);
  Entry& entry = entries_[static_cast<size_t>(token.id)];
  entry.bytes = std::move(bytes);
  entry.special = token.special;
  entry.added = true;
}

const VocabularyTokenizer::Entry& VocabularyTokenizer::entry(int32_t id) const {
  if (id < 0 || id >= vocab_size)
    fail_input(
        "token id {} is outside the tokenizer's vocabulary of {}: text and tokenizer do not belong together",
        id, vocab_size);
  return entries_[static_cast<size_t>(id)];
}

void VocabularyTokenizer::encode_run(std::string_view text, std::span<const TextRange> control, Place& place,
                                     std::vector<int32_t>& ids) const {
  size_t done = 0;
  const auto encode_until = [&](size_t end) {
    if (end == done) return;
    encode_text(text.substr(done, end - done), place, ids);
    place = Place::continuing;
  };
  for (const AddedTokens::Match& match : added_.find(text, control)) {
    encode_until(match.range.begin);
    ids.push_back(match.id);
    place = Place::after_special;
    done = match.range.end;
  }
  encode_until(text.size());
}

std::vector<int32_t> VocabularyTokenizer::encode(std::string_view text, bool parse_special) const {
  std::vector<int32_t> ids;
  Place place = Place::beginning;
  const TextRange whole{0, text.size()};
  encode_run(text, std::span(&whole, parse_special ? 1 : 0), place, ids);
  return ids;
}

EncodedSegments VocabularyTokenizer::encode_segments(std::span<const Segment> segments) const {
  EncodedSegments encoded;
  Place place = Place::beginning;
  for (size_t next = 0; next < segments.size();) {
    const bool scored = segments[next].scored;
    std::string text;
    std::vector<TextRange> control;
    for (; next < segments.size() && segments[next].scored == scored; ++next) {
      const Segment& segment = segments[next];
      if (segment.control && !segment.text.empty())
        control.push_back({text.size(), text.size() + segment.text.size()});
      text += segment.text;
    }
    encode_run(text, control, place, encoded.ids);
    encoded.scored.resize(encoded.ids.size(), scored);
  }
  return encoded;
}

std::string VocabularyTokenizer::decode(std::span<const int32_t> ids, bool keep_special) const {
  std::string text;
  for (const int32_t id : ids)
    if (const Entry& found = entry(id); keep_special || !found.special) text += found.bytes;
  if (strips_first_space_ && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

int32_t VocabularyTokenizer::id_of(std::string_view piece) const {
  const auto found = ids_.find(std::string(piece));
  return found == ids_.end() ? -1 : found->second;
}

std::string VocabularyTokenizer::piece(int32_t id) const { return entry(id).bytes; }

}  // namespace sinklora
