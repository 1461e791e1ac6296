// Broken and hostile tokenizer files: each is refused with an error that names the file and what is wrong.
#include <doctest/doctest.h>

#include <functional>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "data/sentencepiece_model.h"
#include "data/vocabulary_tokenizer.h"
#include "test/temporary.h"

using namespace sinklora;

namespace {

std::string golden_bytes(const std::string& file) {
  return read_text(test::golden("tokenizer/" + file), 1 << 20);
}

// What the error says when `read` refuses its input, or "" when it takes it.
std::string complaint(const std::function<void()>& read) {
  try {
    read();
  } catch (const Error& error) {
    CHECK(error.code == ExitCode::input);
    CHECK(std::string(error.what()).starts_with("hostile: "));
    return error.what();
  }
  return "";
}
std::string json_complaint(const std::string& text) {
  return complaint([&] { parse_tokenizer_json(text, "hostile"); });
}
std::string model_complaint(const std::string& bytes) {
  return complaint([&] { parse_sentencepiece(bytes, "hostile"); });
}

// Protobuf, written by hand.
std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
std::string number(uint64_t field, uint64_t value) { return varint(field << 3) + varint(value); }
std::string bytes(uint64_t field, const std::string& value) {
  return varint(field << 3 | 2) + varint(value.size()) + value;
}
std::string piece(const std::string& text, uint64_t type = 1) {
  return bytes(1, bytes(1, text) + varint(2 << 3 | 5) + std::string(4, '\0') + number(3, type));
}

struct Model {
  std::string pieces = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3) + byte_pieces() +
                       piece("\xE2\x96\x81") + piece("a");
  std::string trainer = number(3, 2) + number(35, 1);
  std::string normalizer = number(3, 1) + number(4, 0) + number(5, 1);
  std::string rest;

  static std::string byte_pieces(int without = -1) {
    std::string all;
    for (int byte = 0; byte < 256; ++byte)
      if (byte != without) all += piece(fmt::format("<0x{:02X}>", byte), 6);
    return all;
  }
  std::string str() const { return pieces + bytes(2, trainer) + bytes(3, normalizer) + rest; }
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("hostile tokenizer.model") {
  CHECK(model_complaint(Model().str()) == "");
  const auto with = [](auto change) {
    Model model;
    change(model);
    return model_complaint(model.str());
  };
  CHECK(has(with([](Model& m) { m.pieces += piece(std::string(100'000, 'x')); }), "100000 bytes"));
  CHECK(has(with([](Model& m) { m.pieces += piece(""); }), "0 bytes"));
  CHECK(has(with([](Model& m) { m.pieces += piece("a"); }), "occurs twice"));
  CHECK(has(with([](Model& m) { m.pieces += piece("<0x-1>", 6); }), "<0x-1>"));
  CHECK(has(with([](Model& m) { m.pieces += piece("<0x1ff>", 6); }), "<0x1ff>"));
  CHECK(has(with([](Model& m) { m.pieces += piece("b", 9); }), "unknown type 9"));
  CHECK(has(with([](Model& m) { m.pieces += piece("\xFF"); }), "not UTF-8"));
  CHECK(has(with([](Model& m) { m.pieces += piece("<unk2>", 2); }), "2 pieces stand for unknown"));
  CHECK(has(with([](Model& m) { m.pieces += piece("x\xF4\x8F\xBF\xBF"); }), "U+10FFFF"));
  CHECK(has(with([](Model& m) { m.pieces = piece("<unk>", 2) + Model::byte_pieces(0x41); }),
            "<0x41> is missing"));
  CHECK(has(
      with([](Model& m) { m.pieces += bytes(1, bytes(1, "b") + varint(2 << 3 | 5) + "\xFF\xFF\xFF\x7F"); }),
      "score"));
  CHECK(has(with([](Model& m) { m.trainer = number(3, 1) + number(35, 1); }), "type 1"));
  CHECK(has(with([](Model& m) { m.trainer = number(3, 2); }), "byte fallback"));
  CHECK(has(with([](Model& m) { m.rest = bytes(4, "x"); }), "self-test"));
  CHECK(has(with([](Model& m) { m.rest = bytes(2, m.trainer); }), "twice"));
  CHECK(has(with([](Model& m) { m.rest = bytes(99, "x"); }), "field of number 99"));
  CHECK(has(with([](Model& m) { m.rest = varint(3 << 3 | 3); }), "unknown kind of field"));  // a group
  CHECK(has(with([](Model& m) { m.rest = varint(1 << 3 | 2) + varint(uint64_t{1} << 60); }), "ends inside"));
  CHECK(has(with([](Model& m) { m.normalizer += bytes(2, "x"); }), "charsmap"));
  // A trie of one block whose root points at the block behind it; one without an end of its replacements.
  const std::string root("\x00\x04\x04\x00", 4), block(1020, '\0');
  CHECK(has(with([&](Model& m) {
              m.normalizer += bytes(2, std::string("\x00\x04\x00\x00", 4) + root + block + '\0');
            }),
            "outside itself"));
  CHECK(has(with([&](Model& m) {
              m.normalizer += bytes(2, std::string("\x00\x04\x00\x00", 4) + std::string(1024, '\0') + 'x');
            }),
            "without an end"));
}

TEST_CASE("every truncation and many bit flips of a tokenizer.model are refused or harmless") {
  for (const std::string file : {"sentencepiece.model", "normalizing.model"}) {
    const std::string good = golden_bytes(file);
    for (size_t size = 0; size < good.size(); size += 97) model_complaint(good.substr(0, size));
    for (size_t i = 0; i < good.size(); i += 41) {
      std::string flipped = good;
      flipped[i] = static_cast<char>(flipped[i] ^ 1 << (i % 8));
      try {
        parse_sentencepiece(flipped, "hostile")->encode("the river \xEF\xAC\x81 \xC2\xBD x\xFF", false);
      } catch (const Error&) {
      }
    }
  }
}

TEST_CASE("hostile tokenizer.json") {
  const Json good = parse_json(golden_bytes("llama3.json"), "good"),
             prepend = parse_json(golden_bytes("prepend.json"), "good");
  const auto with = [&](const Json& base, const std::string& pointer, const Json& value) {
    Json changed = base;
    changed[Json::json_pointer(pointer)] = value;
    return json_complaint(changed.dump());
  };
  CHECK(json_complaint(good.dump()) == "");
  CHECK(has(json_complaint(std::string(100'000, '[')), "nesting"));
  CHECK(has(json_complaint("{}"), "lacks \"model\""));
  CHECK(has(json_complaint("[]"), "should be a JSON object"));
  CHECK(has(with(good, "/model/type", "WordPiece"), "\"WordPiece\""));
  CHECK(has(with(good, "/model/type", "Unigram"), "\"Unigram\""));
  CHECK(has(with(good, "/model/dropout", 0.1), "dropout"));
  CHECK(has(with(good, "/model/surprise", 1), "\"surprise\""));
  CHECK(has(with(good, "/model/end_of_word_suffix", "</w>"), "end_of_word_suffix"));
  CHECK(has(with(good, "/model/vocab/far", 2147483647), "2147483647"));
  CHECK(has(with(good, "/model/vocab/far", 2147483648), "token id"));
  CHECK(has(with(good, "/model/vocab/far", 1000000), "token id 1000000"));
  CHECK(has(with(good, "/model/vocab/far", -1), "token id"));
  CHECK(has(with(good, "/model/vocab/far", "7"), "token id"));
  CHECK(has(with(good, "/model/vocab/far", 7), "same token id 7"));
  CHECK(has(with(good, "/model/vocab/" + std::string(100'000, 'x'), 1500), "100000 bytes"));
  CHECK(has(with(good, "/model/merges/0", "a"), "merges[0]"));
  CHECK(has(with(good, "/model/merges/0", "a b c"), "merges[0]"));
  CHECK(has(with(good, "/model/merges/1", Json{"a", "nowhere"}), "merges[1]"));
  CHECK(has(with(good, "/model/merges/1", good["model"]["merges"][0]), "merged before"));
  CHECK(has(with(good, "/normalizer", Json{{"type", "NFC"}}), "\"NFC\""));
  CHECK(has(with(good, "/decoder", Json{{"type", "WordPiece"}}), "decoder"));
  CHECK(has(with(good, "/pre_tokenizer/pretokenizers/0/behavior", "Removed"), "\"Removed\""));
  CHECK(has(with(good, "/pre_tokenizer/pretokenizers/0/type", "Whitespace"), "\"Whitespace\""));
  CHECK(has(with(good, "/pre_tokenizer/pretokenizers/1/add_prefix_space", true), "add_prefix_space"));
  CHECK(has(with(good, "/added_tokens/0/id", 3), "same token id 3"));
  CHECK(has(with(good, "/added_tokens/0/content", "!"), "the vocabulary gives it"));
  CHECK(has(with(good, "/added_tokens/0/content", ""), "is empty"));
  CHECK(has(with(good, "/added_tokens/0/stride", 1), "\"stride\""));
  CHECK(has(with(good, "/post_processor", Json{{"type", "BertProcessing"}}), "\"BertProcessing\""));
  CHECK(has(with(prepend, "/normalizer/normalizers/0/prepend", "x"), "Prepend"));
  CHECK(has(with(prepend, "/normalizer", nullptr), "neither ByteLevel"));
  CHECK(has(with(prepend, "/decoder/decoders/0/type", "CTC"), "\"CTC\""));
  CHECK(has(with(prepend, "/post_processor/single/1", Json{{"SpecialToken", Json{{"id", "</s>"}}}}),
            "template"));
  Json normalized = prepend;
  normalized["added_tokens"].push_back(
      Json{{"id", 800}, {"content", "<x>"}, {"special", false}, {"normalized", true}});
  // A step behind the normalizer puts the space there, but not in front of the token's name.
  normalized["normalizer"] = normalized["normalizer"]["normalizers"][1];
  normalized["pre_tokenizer"] = Json{{"type", "Metaspace"}, {"replacement", "\xE2\x96\x81"}};
  CHECK(has(json_complaint(normalized.dump()), "set its \"normalized\" to false"));
  // Without a normalizer the text is the normalized text.
  normalized["normalizer"] = nullptr;
  CHECK(json_complaint(normalized.dump()) == "");
}

TEST_CASE("split patterns whose meaning is not certain are refused") {
  const Json good = parse_json(golden_bytes("llama3.json"), "good");
  for (const std::string pattern :
       {"a*",       "(",     "\\w+", "[[:alpha:]]+", "[a&&b]",     "(?R)",  "(*COMMIT)a",
        "\\p{Han}", "^a",    "a.b",  "\\h",          "(?<name>a)", "a{2}+", "a{,2}",
        "[]a]",     "\\x41", "a\\",  "(?{code})",    "\\C",        "(?C1)a"}) {
    CAPTURE(pattern);
    Json changed = good;
    changed["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern;
    CHECK(has(json_complaint(changed.dump()), "regular expression"));
  }
  // Endless backtracking ends with an error, not with a wait.
  Json slow = good;
  slow["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?:a+a+)+b";
  const auto tokenizer = parse_tokenizer_json(slow.dump(), "hostile");
  CHECK(has(complaint([&] { tokenizer->encode(std::string(60, 'a') + "cb", false); }), "gave up"));
}
