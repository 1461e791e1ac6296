#include "data/tokenizer.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "test/clock.h"
#include "test/temporary.h"

using namespace sinklora;
using Ids = std::vector<int32_t>;

namespace {

std::string repeated(std::string_view unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

std::filesystem::path golden_tokenizer(const std::string& file) { return test::golden("tokenizer/" + file); }

void copy_golden(const std::string& file, const std::filesystem::path& to) {
  std::filesystem::copy_file(golden_tokenizer(file), to);
}

}  // namespace

TEST_CASE("decode(encode(bytes)) gives any bytes back") {
  // Text, ill-formed bytes, lone surrogates, overlong forms and NUL, in any mixture.
  const std::vector<std::string> parts = {"a",
                                          " ",
                                          "  ",
                                          "\n",
                                          "\r\n",
                                          "word",
                                          " word",
                                          "\xC3\xA9",
                                          "\xF0\x9F\x91\x8D",
                                          std::string(1, '\0'),
                                          "\xFF",
                                          "\xED\xA0\x80",
                                          "\xC0\x80",
                                          "\xE2\x96",
                                          "\xF4\x90\x80\x80",
                                          "\xF4\x8F\xBF\xBF",
                                          "<s>",
                                          "</s>",
                                          "<|eot_id|>",
                                          "7",
                                          "123"};
  for (const std::string file : {"gpt2.json", "llama3.json", "prepend.json", "sentencepiece.model", "byte"}) {
    CAPTURE(file);
    const auto tokenizer =
        open_tokenizer(file == "byte" ? std::filesystem::path(file) : golden_tokenizer(file));
    for (uint64_t i = 0; i < 500; ++i) {
      std::string text;
      for (uint64_t k = 0; k < i % 12; ++k) text += parts[(i * 7919 + k * k * 104729 + k * i) % parts.size()];
      CAPTURE(text);
      const Ids ids = tokenizer->encode(text);
      CHECK(tokenizer->decode(ids) == text);
      for (const int32_t id : ids) CHECK((id >= 0 && id < tokenizer->vocab_size));
    }
  }
}

TEST_CASE("a megabyte of one letter takes less than two seconds") {
  for (const std::string file : {"gpt2.json", "llama3.json", "prepend.json", "sentencepiece.model", "byte"})
    for (const std::string_view unit : {"a", " ", "a\xFF"}) {
      CAPTURE(file);
      CAPTURE(unit);
      const auto tokenizer =
          open_tokenizer(file == "byte" ? std::filesystem::path(file) : golden_tokenizer(file));
      const std::string text = repeated(unit, 1 << 20);
      [[maybe_unused]] const double start = test::thread_seconds();
      const Ids ids = tokenizer->encode(text);
#ifdef NDEBUG
      CHECK(test::thread_seconds() - start < 2.0);
#endif
      CHECK(tokenizer->decode(ids) == text);
    }
}

TEST_CASE("names of special tokens in a text stay text unless they are asked for") {
  for (const std::string file :
       {"gpt2.json", "llama3.json", "smollm.json", "prepend.json", "sentencepiece.model", "byte"}) {
    CAPTURE(file);
    const auto tokenizer =
        open_tokenizer(file == "byte" ? std::filesystem::path(file) : golden_tokenizer(file));
    const bool llama3 = file == "llama3.json";
    const std::string name = llama3 ? "<|eot_id|>" : tokenizer->id_of("</s>") >= 0 ? "</s>" : "<|endoftext|>";
    const int32_t id = tokenizer->id_of(name);
    REQUIRE(id >= 0);
    const Ids as_text = tokenizer->encode("a" + name), parsed = tokenizer->encode("a" + name, true);
    CHECK(std::count(as_text.begin(), as_text.end(), id) == 0);
    CHECK(parsed.back() == id);
    CHECK(tokenizer->decode(as_text) == "a" + name);
    CHECK(tokenizer->decode(parsed) == "a");
    CHECK(tokenizer->decode(parsed, true) == "a" + name);
    CHECK(tokenizer->piece(id) == name);
    CHECK_THROWS_AS(tokenizer->piece(static_cast<int32_t>(tokenizer->vocab_size)), Error);
    CHECK_THROWS_AS(tokenizer->decode(Ids{-1}), Error);
    CHECK(tokenizer->id_of("no such piece") == -1);
  }
}

TEST_CASE("segments are read as one text, and only control segments hold special tokens") {
  for (const std::string file : {"llama3.json", "prepend.json", "sentencepiece.model", "byte"}) {
    CAPTURE(file);
    const auto tokenizer =
        open_tokenizer(file == "byte" ? std::filesystem::path(file) : golden_tokenizer(file));
    const std::string bos = tokenizer->piece(tokenizer->bos_id);
    const std::vector<Segment> segments = {{bos + "the ri", true, false},
                                           {"ver " + bos, false, false},
                                           {"", false, false},
                                           {" not", false, true},
                                           {bos, true, true},
                                           {"then", true, false}};
    const EncodedSegments encoded = tokenizer->encode_segments(segments);
    CHECK(encoded.ids.size() == encoded.scored.size());
    CHECK(std::count(encoded.ids.begin(), encoded.ids.end(), tokenizer->bos_id) == 2);
    // What is scored decodes to its own text, so no token crosses its border.
    std::string scored, other;
    for (size_t i = 0; i < encoded.ids.size(); ++i)
      (encoded.scored[i] ? scored : other) += tokenizer->piece(encoded.ids[i]);
    CHECK(scored == " not" + bos);
    // No border splits the rest: "river" is tokenized as it is in one text.
    Ids joined = tokenizer->encode(bos + "the river ", true);
    joined.pop_back();  // whose last token may be another one when text follows
    CHECK(std::equal(joined.begin(), joined.end(), encoded.ids.begin()));
  }
}

TEST_CASE("the byte tokenizer") {
  const auto tokenizer = open_tokenizer("byte");
  CHECK(tokenizer->kind == "byte");
  CHECK(tokenizer->vocab_size == 259);
  CHECK(tokenizer->bos_id == 256);
  CHECK(tokenizer->eos_id == 257);
  CHECK(tokenizer->pad_id == 258);
  CHECK(tokenizer->encode("A\xFF") == Ids{65, 255});
  CHECK(tokenizer->encode("<s>A", true) == Ids{256, 65});
  CHECK(tokenizer->decode(Ids{256, 65, 257}, true) == "<s>A</s>");
  CHECK(tokenizer->sha256 == sha256(std::as_bytes(std::span("byte", 4))));

  const test::TemporaryDirectory folder;
  CHECK_THROWS_AS(open_tokenizer(folder.path()), Error);
  write_byte_tokenizer(folder.path());
  const auto opened = open_tokenizer(folder.path());
  CHECK(opened->kind == "byte");
  CHECK(opened->sha256 == tokenizer->sha256);
}

TEST_CASE("files beside the tokenizer name BOS, EOS and padding") {
  const test::TemporaryDirectory folder;
  copy_golden("llama3.json", folder / "tokenizer.json");
  auto tokenizer = open_tokenizer(folder.path());
  CHECK(tokenizer->kind == "bpe");
  CHECK(tokenizer->sha256 == sha256_of_file(folder / "tokenizer.json"));
  CHECK(tokenizer->add_bos);  // by its post-processor
  CHECK(tokenizer->piece(tokenizer->bos_id) == "<|begin_of_text|>");
  CHECK(tokenizer->piece(tokenizer->eos_id) == "<|end_of_text|>");
  CHECK(tokenizer->pad_id == -1);

  const int32_t eot = tokenizer->id_of("<|eot_id|>");
  write_text_atomically(folder / "config.json",
                        fmt::format(R"({{"eos_token_id": [{}, 3], "pad_token_id": 5}})", eot));
  tokenizer = open_tokenizer(folder.path());
  CHECK(tokenizer->eos_id == eot);
  CHECK(tokenizer->pad_id == 5);

  write_text_atomically(folder / "special_tokens_map.json",
                        R"({"eos_token": {"content": "<|end_of_text|>"}})");
  write_text_atomically(folder / "tokenizer_config.json",
                        R"({"pad_token": "<|end_header_id|>", "bos_token": null, "add_bos_token": false})");
  tokenizer = open_tokenizer(folder / "tokenizer.json");
  CHECK(tokenizer->piece(tokenizer->eos_id) == "<|end_of_text|>");
  CHECK(tokenizer->piece(tokenizer->pad_id) == "<|end_header_id|>");
  CHECK(tokenizer->piece(tokenizer->bos_id) == "<|begin_of_text|>");
  CHECK_FALSE(tokenizer->add_bos);

  write_text_atomically(folder / "special_tokens_map.json", R"({"eos_token": "<gone>"})");
  CHECK_THROWS_AS(open_tokenizer(folder.path()), Error);
}

TEST_CASE("where config.json and the tokenizer name different tokens, the tokenizer is believed") {
  const test::TemporaryDirectory folder;
  copy_golden("llama3.json", folder / "tokenizer.json");
  // What transformers writes for a model that was given no ids.
  write_text_atomically(folder / "config.json", R"({"bos_token_id": 1, "eos_token_id": 2})");
  auto tokenizer = open_tokenizer(folder.path());
  CHECK(tokenizer->add_bos);
  CHECK(tokenizer->piece(tokenizer->bos_id) == "<|begin_of_text|>");
  CHECK(tokenizer->piece(tokenizer->eos_id) == "<|end_of_text|>");
  REQUIRE(tokenizer->notes.size() == 2);
  CHECK(tokenizer->notes[0].find(
            "config.json: bos_token_id is 1 (\"\\\"\"), but the tokenizer has another") != std::string::npos);
  CHECK(tokenizer->notes[1].find("eos_token_id is 2 (\"#\"), an ordinary piece") != std::string::npos);
  CHECK(tokenizer->notes[1].find("eos_token in tokenizer_config.json decides") != std::string::npos);

  // One end of several is the tokenizer's; ids of a larger vocabulary matter only where they are used.
  const int32_t bos = tokenizer->bos_id, eot = tokenizer->id_of("<|eot_id|>");
  write_text_atomically(folder / "config.json",
                        fmt::format(R"({{"bos_token_id": {}, "eos_token_id": [99999, {}]}})", bos, eot));
  CHECK_THROWS_WITH_AS(open_tokenizer(folder.path()), doctest::Contains("eos_token_id is 99999"), Error);
  write_text_atomically(folder / "tokenizer_config.json", R"({"eos_token": "<|eot_id|>"})");
  tokenizer = open_tokenizer(folder.path());
  CHECK(tokenizer->eos_id == eot);
  CHECK(tokenizer->notes.empty());

  const test::TemporaryDirectory other;
  copy_golden("sentencepiece.model", other / "tokenizer.model");
  write_text_atomically(other / "config.json", R"({"bos_token_id": 5, "eos_token_id": 2})");
  tokenizer = open_tokenizer(other.path());
  CHECK(tokenizer->bos_id == 1);
  CHECK(tokenizer->eos_id == 2);
  CHECK(tokenizer->notes.size() == 1);
}

TEST_CASE(
    "a tokenizer.json's template puts BOS in front, whatever add_bos_token says, but for LLaMA's class") {
  const test::TemporaryDirectory folder;
  copy_golden("llama3.json", folder / "tokenizer.json");
  const auto opened = [&](const char* config) {
    write_text_atomically(folder / "tokenizer_config.json", config);
    return open_tokenizer(folder.path());
  };
  const auto fast = opened(R"({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false})");
  CHECK(fast->add_bos);
  REQUIRE(fast->notes.size() == 1);
  CHECK(fast->notes[0].find("add_bos_token is false, but tokenizer.json's template puts") !=
        std::string::npos);
  const auto llama = opened(R"({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": false})");
  CHECK_FALSE(llama->add_bos);
  CHECK(llama->notes.empty());
}

TEST_CASE("ordinary added tokens are found where a normalizer puts spaces, as by Hugging Face") {
  const test::TemporaryDirectory folder;
  Json json = read_json(golden_tokenizer("prepend.json"));
  json["added_tokens"].push_back(
      Json{{"id", 800}, {"content", "<x>"}, {"special", false}, {"normalized", true}});
  write_text_atomically(folder / "tokenizer.json", json.dump());
  const auto tokenizer = open_tokenizer(folder.path());
  const std::vector<std::pair<std::string, Ids>> cases = {
      // made with tokenizers 0.22
      {"<x>", {800}},
      {"a <x> b", {263, 800, 286}},
      {"a<x>b", {263, 743, 716, 747, 697}},
      {"<x><x> <x>", {800, 743, 716, 747, 800}},
      {"the  <x>\n<x>", {269, 674, 800, 13, 743, 716, 747}}};
  for (const auto& [text, ids] : cases) {
    CAPTURE(text);
    CHECK(tokenizer->encode(text) == ids);
    CHECK(tokenizer->decode(ids) == text);
  }
  CHECK(tokenizer->encode("</s><x>", true) == Ids{2, 800});
}

TEST_CASE("a Git LFS pointer in a tokenizer's place is called one") {
  const test::TemporaryDirectory folder;
  write_text_atomically(folder / "tokenizer.json",
                        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
  CHECK_THROWS_WITH_AS(
      open_tokenizer(folder.path()),
      doctest::Contains("tokenizer.json: looks like a Git LFS pointer to the file: run git lfs "
                        "pull"),
      Error);
  std::filesystem::rename(folder / "tokenizer.json", folder / "tokenizer.model");
  CHECK_THROWS_WITH_AS(open_tokenizer(folder.path()), doctest::Contains("run git lfs pull"), Error);
}

TEST_CASE("tokens added to a tokenizer.model after its training") {
  const test::TemporaryDirectory folder;
  copy_golden("sentencepiece.model", folder / "tokenizer.model");
  const auto plain = open_tokenizer(folder.path());
  CHECK(plain->add_bos);
  CHECK(plain->bos_id == 1);
  CHECK(plain->eos_id == 2);
  CHECK(plain->pad_id == -1);
  const int64_t size = plain->vocab_size;
  write_text_atomically(folder / "tokenizer_config.json", R"({"pad_token": "[PAD]", "added_tokens_decoder":
    {"1": {"content": "<s>", "special": true}}})");
  write_text_atomically(folder / "added_tokens.json", fmt::format(R"({{"[PAD]": {}}})", size));
  const auto padded = open_tokenizer(folder.path());
  CHECK(padded->vocab_size == size + 1);
  CHECK(padded->pad_id == size);
  CHECK(padded->encode("x[PAD]", true).back() == size);
  CHECK(padded->encode("x[PAD]") == plain->encode("x[PAD]"));
  // What no file calls special is a word, found in any text.
  write_text_atomically(
      folder / "added_tokens.json",
      fmt::format(R"({{"[PAD]": {}, "<ADD>": {}, "<|end|>": {}}})", size, size + 1, size + 2));
  write_text_atomically(folder / "special_tokens_map.json", R"({"additional_special_tokens": ["<|end|>"]})");
  const auto added = open_tokenizer(folder.path());
  Ids apart = added->encode("x"), behind = added->encode("y");
  apart.push_back(static_cast<int32_t>(size + 1));
  apart.insert(apart.end(), behind.begin(), behind.end());
  CHECK(added->encode("x<ADD>y") == apart);
  CHECK(added->encode("x<|end|>") == plain->encode("x<|end|>"));
  CHECK(added->encode("x<|end|>", true).back() == size + 2);
  CHECK(added->decode(apart) == "x<ADD> y");
  write_text_atomically(folder / "added_tokens.json", R"({"[PAD]": 3})");
  CHECK_THROWS_AS(open_tokenizer(folder.path()), Error);
}
