#include "infer/text_stream.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/random.h"
#include "data/utf8.h"
#include "test/infer/piece_tokenizer.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::PieceTokenizer;

namespace {

// What a stream says in all, and it never breaks a character.
std::string streamed(TextStream& stream, std::span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = stream.push(id);
    CHECK(is_utf8(piece));
    text += piece;
  }
  return text + stream.finish();
}

// Ill-formed bytes replaced by another program: nlohmann-json.
std::string replaced(const std::string& text) {
  return parse_json(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace), "text");
}

}  // namespace

TEST_CASE("streamed text is the decoded text, for random ids of every kind of tokenizer") {
  for (const std::string name :
       {"byte", "tokenizer/sentencepiece.model", "tokenizer/gpt2.json", "tokenizer/llama3.json",
        "tokenizer/metaspace.json", "tokenizer/prepend.json", "tokenizer/smollm.json"}) {
    CAPTURE(name);
    const auto tokenizer = name == "byte" ? open_tokenizer(name) : open_tokenizer(test::golden(name));
    const RandomStream random(1, name);
    for (uint64_t round = 0; round < 60; ++round) {
      std::vector<int32_t> ids(1 + random.below(100 * round, 40));
      for (size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<int32_t>(
            random.below(100 * round + i + 1, static_cast<uint64_t>(tokenizer->vocab_size)));
      TextStream stream(*tokenizer);
      CHECK(streamed(stream, ids) == replaced(tokenizer->decode(ids)));
    }
    const std::string text = " Zoë 🦔 \u65e5本語 e\u0301 \r\n";
    TextStream stream(*tokenizer);
    const std::vector<int32_t> ids = tokenizer->encode(text);
    CHECK(streamed(stream, ids) == tokenizer->decode(ids));
  }
}

TEST_CASE("special tokens in front do not cost the first word its place") {
  const auto tokenizer = open_tokenizer(test::golden("tokenizer/sentencepiece.model"));
  std::vector<int32_t> ids = tokenizer->encode(" two  spaces");
  ids.insert(ids.begin(), 2, tokenizer->bos_id);
  TextStream stream(*tokenizer);
  CHECK(streamed(stream, ids) == tokenizer->decode(ids));
  CHECK(tokenizer->decode(ids) == " two  spaces");
}

TEST_CASE("characters come whole, ill-formed bytes as U+FFFD once it is certain") {
  const auto byte = open_tokenizer("byte");
  TextStream stream(*byte);
  CHECK(stream.push(0xF0) == "");
  CHECK(stream.push(0x9F) == "");
  CHECK(stream.push(0xA6) == "");
  CHECK(stream.push(0x94) == "\U0001F994");
  CHECK(stream.push(0xE2) == "");
  CHECK(stream.push(0x82) == "");
  CHECK(stream.push('x') == "\uFFFDx");  // one for the whole beginning
  CHECK(stream.push(0xED) == "");        // and no surrogate begins
  CHECK(stream.push(0xA0) == "\uFFFD\uFFFD");
  CHECK(stream.push(0xE2) == "");
  CHECK(stream.finish() == "\uFFFD");
}

TEST_CASE("a stop string ends the reply however the text is cut into tokens") {
  const PieceTokenizer pieces({"<s>", "a", "b", "ab", "ba", "aab", "abab", "bb"});
  const RandomStream random(2, "stops");
  const std::vector<std::vector<std::string>> lists{
      {"bb"}, {"abba"}, {"aabaab"}, {"bb", "abb"}, {"abab", "ba"}, {"baba", "abaa", "bbb"}, {"c"}};
  for (uint64_t round = 0; round < 1400; ++round) {
    const auto& stops = lists[round % lists.size()];
    std::vector<int32_t> ids(1 + random.below(100 * round, 12));
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<int32_t>(random.below(100 * round + i + 1, 8));
    const std::string text = pieces.decode(ids);
    // The definition: the shortest beginning of the text that ends with a stop string, without the longest.
    std::string wanted = text;
    bool stops_somewhere = false;
    for (size_t end = 1; end <= text.size() && !stops_somewhere; ++end)
      for (const std::string& stop : stops)
        if (text.substr(0, end).ends_with(stop)) {
          stops_somewhere = true;
          if (end - stop.size() < wanted.size()) wanted = text.substr(0, end - stop.size());
        }
    TextStream stream(pieces, stops);
    CAPTURE(text);
    CHECK(streamed(stream, ids) == wanted);
    CHECK(stream.stopped() == stops_somewhere);
  }
}

TEST_CASE("what may become a stop string is held back, and no more than that") {
  const auto byte = open_tokenizer("byte");
  TextStream stream(*byte, {"STOP", "\n\n"});
  CHECK(stream.push('x') == "x");
  CHECK(stream.push('S') == "");
  CHECK(stream.push('T') == "");
  CHECK(stream.push('S') == "ST");
  CHECK(stream.push('\n') == "S");
  CHECK(stream.push('y') == "\ny");
  for (const char c : std::string("STO")) CHECK(stream.push(c) == "");
  CHECK(stream.finish() == "STO");
  stream.reset();
  for (const char c : std::string("STO")) CHECK(stream.push(c) == "");
  CHECK(!stream.stopped());
  CHECK(stream.push('P') == "");
  CHECK(stream.stopped());
  CHECK(stream.push('z') == "");
  CHECK(stream.finish() == "");
  CHECK_THROWS_AS(TextStream(*byte, {"x", ""}), Error);
}

TEST_CASE("a token costs the decoding of its own text, however long the reply is") {
  const PieceTokenizer pieces({"<s>", "word "});
  TextStream stream(pieces, {"no such text"});
  for (int i = 0; i < 1000; ++i) stream.push(0);  // nothing to anchor to
  for (int i = 0; i < 1000; ++i) stream.push(1);
  CHECK(pieces.decoded <= 2 * 2000 + 3);
}
