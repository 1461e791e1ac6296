#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/json.h"
#include "base/random.h"
#include "data/json_stream.h"

using namespace sinklora;

namespace {

// Hands the text out in pieces of at most `piece` bytes.
JsonElements::Read pieces(const std::string& text, size_t piece) {
  return [&text, piece](int64_t offset, std::span<std::byte> out) {
    const size_t count = std::min({piece, out.size(), text.size() - static_cast<size_t>(offset)});
    std::memcpy(out.data(), text.data() + offset, count);
    return static_cast<int64_t>(count);
  };
}

std::vector<std::string> split(const std::string& text, size_t piece = 1 << 20) {
  JsonElements elements(pieces(text, piece), "t.json");
  std::vector<std::string> out;
  for (std::string element; elements.next(element);) out.push_back(element);
  return out;
}

using List = std::vector<std::string>;

}  // namespace

TEST_CASE("top-level elements are found, whatever is inside them") {
  CHECK(split("[]").empty());
  CHECK(split(" [ \n ] ").empty());
  CHECK(split("").empty());
  CHECK(split(" \n").empty());
  CHECK(split("[1]") == List{"1"});
  CHECK(split("\xEF\xBB\xBF[1]") == List{"1"});
  CHECK(split(R"([ {"a":"]},[\"" }, "x,\\", [[],{}], -1.5e3,null ])") ==
        List{R"({"a":"]},[\"" })", R"("x,\\")", "[[],{}]", "-1.5e3", "null"});
  CHECK(split("{\"a\":1}\n{\"b\":[2]}\r\n\n{}") == List{"{\"a\":1}", "{\"b\":[2]}", "{}"});
}

TEST_CASE("the size of the pieces read does not matter, and any element can be gone on from") {
  const std::string text = R"( [ {"a":"x\"\\","b":[1,2,{"c":null}]} , "\u00e9\\" ,7, {"d":"]"} ] )";
  const List whole = split(text);
  REQUIRE(whole.size() == 4);
  for (size_t piece = 1; piece < 20; ++piece) CHECK(split(text, piece) == whole);

  for (const std::string& source : {text, std::string("{\"a\":1} [2] \"3\"")}) {
    JsonElements elements(pieces(source, 3), "t.json");
    const List all = split(source);
    std::string element;
    for (size_t i = 0; elements.next(element); ++i) {
      JsonElements later(pieces(source, 3), "t.json", elements.element_offset(), elements.form());
      for (size_t j = i; j < all.size(); ++j) {
        std::string again;
        REQUIRE(later.next(again));
        CHECK(again == all[j]);
      }
      CHECK(!later.next(element));
    }
  }
}

TEST_CASE("broken arrays are errors that name file and byte") {
  for (const char* text : {"[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]x", "[1],", "[{\"a\":1]", "[\"a",
                           "[\"a\\", "[}", "]", ",", "[1}", "\xEF\xBB[1]"}) {
    CAPTURE(text);
    CHECK_THROWS_WITH_AS(split(text), doctest::Contains("t.json: "), Error);
  }
  CHECK_THROWS_AS(split(std::string("[1]\0]", 5)), Error);
  CHECK_THROWS_AS(parse_json(std::string("[1]\0]", 5), "t.json"), Error);
  CHECK_THROWS_WITH_AS(split("[1,2,[3"), doctest::Contains("byte 5"), Error);
  for (const char* open : {"[", "{\"a\":"}) {
    std::string deep = "[";
    for (int i = 0; i < 100000; ++i) deep += open;
    CHECK_THROWS_WITH_AS(split(deep), doctest::Contains("nesting"), Error);
  }
}

TEST_CASE("splitting and parsing accepts and yields what parsing the whole does") {
  // Random strings over the letters that matter; most are broken, a good number is not.
  const RandomStream random(5, "json");
  const std::string letters = "[[]]{}\"\",,::11a\\ ";
  int valid = 0;
  for (uint64_t trial = 0, draw = 0; trial < 40000; ++trial) {
    std::string text = "[";
    const uint64_t length = random.below(draw++, 9);
    for (uint64_t i = 0; i < length; ++i) text += letters[random.below(draw++, letters.size())];
    text += "]";
    Json whole, joined = Json::array();
    bool whole_is_good = true, parts_are_good = true;
    try {
      whole = parse_json(text, "w");
    } catch (const Error&) {
      whole_is_good = false;
    }
    try {
      for (const std::string& element : split(text)) joined.push_back(parse_json(element, "p"));
    } catch (const Error&) {
      parts_are_good = false;
    }
    CAPTURE(text);
    REQUIRE(whole_is_good == parts_are_good);
    if (whole_is_good) REQUIRE(whole == joined);
    valid += whole_is_good && !whole.empty();
  }
  CHECK(valid > 100);
}

TEST_CASE("an array of any length is split in the memory of one element") {
  const std::string record = "{\"instruction\":\"" + std::string(1000, 'x') + "\",\"output\":\"y\"},";
  const int64_t count = 50000;
  const int64_t size = 1 + count * static_cast<int64_t>(record.size());
  const auto endless = [&](int64_t offset,
                           std::span<std::byte> out) {  // "[" record record ... with "]" at the end
    const auto got = static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(out.size()), size - offset));
    for (size_t i = 0; i < got;) {
      const int64_t at = offset + static_cast<int64_t>(i);
      if (at == 0 || at == size - 1) {
        out[i++] = static_cast<std::byte>(at == 0 ? '[' : ']');
        continue;
      }
      const size_t inside = static_cast<size_t>(at - 1) % record.size();
      const size_t run = std::min({record.size() - inside, got - i, static_cast<size_t>(size - 1 - at)});
      std::memcpy(out.data() + i, record.data() + inside, run);
      i += run;
    }
    return static_cast<int64_t>(got);
  };
  JsonElements elements(endless, "t.json");
  std::string element;
  int64_t found = 0;
  while (elements.next(element)) {
    REQUIRE(element.size() == record.size() - 1);
    ++found;
  }
  CHECK(found == count);
  CHECK(element.capacity() < 10000);
}
