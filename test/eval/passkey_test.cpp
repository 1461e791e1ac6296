#include "eval/passkey.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "test/temporary.h"

using namespace sinklora;

namespace {

// Knows the key from depth `blind_until` on, and says it as the byte tokenizer spells it.
class KeyFinder : public Session {
 public:
  explicit KeyFinder(double blind_until) : blind_until_(blind_until) {}
  std::vector<float> extend(std::span<const int32_t> added) override {
    for (const int32_t id : added) text_ += id < 256 ? static_cast<char>(id) : '^';
    const std::string told = "The pass key is ";
    const size_t at = text_.find(told) + told.size();
    const std::string key = text_.substr(at, text_.find('.', at) - at);
    const size_t question = text_.rfind("The pass key is") + told.size() - 1;
    const std::string wanted = " " + key;
    const bool blind = static_cast<double>(at) < blind_until_ * static_cast<double>(text_.size());
    const size_t said = text_.size() - question;
    std::vector<float> logits(259);
    logits[blind ? 'x' : static_cast<unsigned char>(wanted.at(said))] = 1;
    return logits;
  }
  void reset() override { text_.clear(); }
  int64_t length() const override { return static_cast<int64_t>(text_.size()); }
  int64_t context() const override { return 1 << 20; }
  int64_t cache_bytes() const override { return 0; }

 private:
  double blind_until_;
  std::string text_;
};

}  // namespace

TEST_CASE("passkey prompts are those that the protocol and numpy's generator give") {
  const Json golden = read_json(test::golden("passkey.json"));
  for (const Json& wanted : golden.at("cases")) {
    CAPTURE(wanted.dump());
    const int64_t tokens = (wanted.at("index").get<int64_t>() + 1) * wanted.at("interval").get<int64_t>();
    CHECK(passkey_filler(tokens) == wanted.at("filler_characters"));
    const PasskeyPrompt found = passkey_prompt(passkey_filler(tokens), wanted.at("seed"), std::nullopt);
    CHECK(found.key == wanted.at("key"));
    CHECK(found.text.size() == wanted.at("characters"));
    CHECK(sha256(std::as_bytes(std::span(found.text))) == wanted.at("sha256"));
  }
  const Json& wanted = golden.at("short");
  CHECK(passkey_prompt(wanted.at("filler_characters"), wanted.at("seed"), std::nullopt).text ==
        wanted.at("prompt"));
}

TEST_CASE("a chosen depth moves the key and changes nothing else") {
  const PasskeyPrompt random = passkey_prompt(10'240, 3, std::nullopt);
  for (const double depth : {0.0, 0.25, 1.0}) {
    const PasskeyPrompt chosen = passkey_prompt(10'240, 3, depth);
    CHECK(chosen.key == random.key);
    CHECK(chosen.text.size() == random.text.size());
    const size_t task = chosen.text.find('\n') + 1;
    CHECK(chosen.text.find("The pass key is") == task + static_cast<size_t>(depth * 10'240) + 1);
  }
  CHECK_THROWS_AS(passkey_prompt(0, 0, std::nullopt), Error);
  CHECK_THROWS_AS(passkey_prompt(450'000, 0, std::nullopt), Error);
  CHECK_NOTHROW(passkey_prompt(449'999, 0, std::nullopt));
}

TEST_CASE("the answer's tokens are those that follow the question") {
  const auto byte = open_tokenizer("byte");
  CHECK(byte->decode(passkey_answer(*byte, 123)) == " 123");
  // LongLoRA's definition for LLaMA-2: the number, tokenized alone.
  const auto sentencepiece = open_tokenizer(test::golden("tokenizer/sentencepiece.model"));
  CHECK(passkey_answer(*sentencepiece, 40'517) == sentencepiece->encode("40517"));
  const auto bpe = open_tokenizer(test::golden("tokenizer/gpt2.json"));
  CHECK(bpe->decode(passkey_answer(*bpe, 123)) == " 123");
}

TEST_CASE("retrieval counts exact answers by length and depth") {
  const auto byte = open_tokenizer("byte");
  const RetrievalOptions options{.max_tokens = 2500, .interval = 1000, .depths = 3, .trials = 2};
  KeyFinder session(0.4);
  const auto cells = measure_retrieval(session, passkey_task(*byte), options, false);
  REQUIRE(cells.size() == 6);
  for (size_t i = 0; i < 6; ++i) {
    CAPTURE(i);
    CHECK(cells[i].wanted_tokens == (i < 3 ? 1000 : 2000));
    CHECK(cells[i].depth == (i % 3) / 2.0);
    CHECK(cells[i].correct == (i % 3 == 0 ? 0 : 2));
    CHECK(cells[i].tokens > static_cast<double>(passkey_filler(cells[i].wanted_tokens)));
  }
  CHECK(retrieval_context(passkey_task(*byte), options) > passkey_filler(2000));
  KeyFinder seeing(0);
  const auto random =
      measure_retrieval(seeing, passkey_task(*byte), {.max_tokens = 1000, .trials = 5}, false);
  REQUIRE(random.size() == 1);
  CHECK(!random[0].depth);
  CHECK(random[0].accuracy() == 1);

  const test::TemporaryDirectory folder;
  write_heat_map(folder / "map.svg", "Passkey", "random", cells);
  const std::string svg = read_text(folder / "map.svg", 100'000);
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  size_t full = 0, none = 0;
  for (size_t at = 0; (at = svg.find("hsl(120,", at)) != std::string::npos; ++at) ++full;
  for (size_t at = 0; (at = svg.find("hsl(0,", at)) != std::string::npos; ++at) ++none;
  CHECK(full == 4);
  CHECK(none == 2);
  CHECK(svg.find(">100 %<") != std::string::npos);
  write_heat_map(folder / "random.svg", "Passkey", "anywhere", random);
  CHECK(read_text(folder / "random.svg", 100'000).find(">anywhere<") != std::string::npos);
}
