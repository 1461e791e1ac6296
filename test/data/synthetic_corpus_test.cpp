#include "data/synthetic_corpus.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::TemporaryDirectory;

TEST_CASE("a synthetic document depends on the options and its number alone") {
  const CorpusOptions options{.seed = 5};
  const SyntheticDocument document = synthetic_document(options, 3);
  CHECK(synthetic_document(options, 3).text == document.text);
  CHECK(synthetic_document(options, 4).text != document.text);
  CHECK(synthetic_document({.seed = 6}, 3).text != document.text);
}

TEST_CASE("every mention of a fact gives the value that was stated first, and its distance is true") {
  for (uint64_t index = 0; index < 50; ++index) {
    const SyntheticDocument document = synthetic_document({}, index);
    std::set<std::string> keys;
    for (const Fact& fact : document.facts) keys.insert(fact.key);
    REQUIRE(keys.size() == document.facts.size());

    std::map<int64_t, int64_t> last;
    size_t found = 0;
    for (const FactMention& mention : document.mentions) {
      const Fact& fact = document.facts.at(static_cast<size_t>(mention.fact));
      const std::string whole = fact.key + fact.value;
      REQUIRE(document.text.substr(static_cast<size_t>(mention.offset) - fact.key.size(), whole.size()) ==
              whole);
      const auto before = last.find(mention.fact);
      REQUIRE(mention.distance == (before == last.end() ? -1 : mention.offset - before->second));
      last[mention.fact] = mention.offset;
    }
    // No key stands anywhere else, so no second value can contradict the first.
    for (const Fact& fact : document.facts)
      for (size_t at = document.text.find(fact.key); at != std::string::npos;
           at = document.text.find(fact.key, at + 1))
        ++found;
    REQUIRE(found == document.mentions.size());
  }
}

TEST_CASE("recalls are spread over the octaves from a sentence to a thousand bytes") {
  const CorpusOptions options{.seed = 1, .min_bytes = 8000, .max_bytes = 8000};
  std::map<int64_t, int> octaves;
  int recalls = 0;
  for (uint64_t index = 0; index < 100; ++index)
    for (const FactMention& mention : synthetic_document(options, index).mentions) {
      if (mention.distance < 0) continue;
      ++recalls;
      for (int64_t octave = 32; octave <= 512; octave *= 2)
        if (mention.distance >= octave && mention.distance < 2 * octave) ++octaves[octave];
    }
  REQUIRE(recalls > 5000);
  // The evenly drawn distances, 3 of 4, fall into an octave of 16 .. 8000 bytes with probability 1/9. Those
  // beyond the age of the oldest mention, and the other quarter, recall that one: most of them land in the
  // last octave.
  for (int64_t octave = 32; octave <= 256; octave *= 2) {
    CAPTURE(octave);
    CHECK(octaves[octave] > recalls / 16);
  }
  CHECK(octaves[512] > recalls / 4);
}

TEST_CASE("no weights can know the values: over many documents a key has every value") {
  std::map<std::string, std::set<std::string>> values;
  for (uint64_t index = 0; index < 400; ++index)
    for (const Fact& fact : synthetic_document({}, index).facts) values[fact.key].insert(fact.value);
  REQUIRE(values.size() == 26);
  CHECK(values["B"].size() == 36);
  CHECK(values["T"].size() == 36);
}

TEST_CASE("documents have the lengths asked for, in plain ASCII lines") {
  const CorpusOptions options{.seed = 2, .min_bytes = 500, .max_bytes = 1500};
  std::set<int64_t> lengths;
  for (uint64_t index = 0; index < 100; ++index) {
    const std::string text = synthetic_document(options, index).text;
    lengths.insert(std::ssize(text) / 100);
    CHECK(std::ssize(text) <= 1500);
    CHECK(std::ssize(text) > 500 - 80);  // a sentence has fewer than 80 bytes
    CHECK(text.back() == '\n');
    CHECK(std::all_of(text.begin(), text.end(), [](char c) { return c == '\n' || (c >= ' ' && c <= '~'); }));
  }
  CHECK(lengths.size() >= 9);
  CHECK_THROWS_AS(synthetic_document({.seed = 1, .min_bytes = 100, .max_bytes = 1000}, 0), Error);
  CHECK_THROWS_AS(synthetic_document({.seed = 1, .min_bytes = 1000, .max_bytes = 999}, 0), Error);
}

TEST_CASE("a corpus file holds the documents in order, and as many as asked for") {
  const TemporaryDirectory folder;
  const CorpusOptions options{.seed = 9, .min_bytes = 1000, .max_bytes = 3000};
  const CorpusSize size =
      write_synthetic_corpus(folder / "a.jsonl", CorpusFormat::jsonl, options, {50'000, 0});
  CHECK(size.bytes >= 50'000);
  CHECK(size.bytes < 53'000);
  std::ifstream lines(folder / "a.jsonl");
  uint64_t index = 0;
  for (std::string line; std::getline(lines, line); ++index) {
    const Json record = parse_json(line, "a line");
    REQUIRE(record.is_object());
    REQUIRE(record.at("text") == synthetic_document(options, index).text);
  }
  CHECK(static_cast<int64_t>(index) == size.documents);

  write_synthetic_corpus(folder / "texts", CorpusFormat::text, options, {0, 3});
  CHECK(read_text(folder / "texts/000001.txt", 10'000) == synthetic_document(options, 1).text);
}

TEST_CASE("a question may ask for what was last mentioned at some depth") {
  const CorpusOptions options{.seed = 4, .min_bytes = 2000, .max_bytes = 2000};
  for (uint64_t index = 0; index < 30; ++index)
    for (const double depth : {0.4, 0.7, 1.0}) {
      const LongQuestion question = synthetic_question(options, index, depth);
      const SyntheticDocument document = synthetic_document(options, index);
      const std::string sign = question.lead.substr(question.lead.find(' ') + 1) + question.value;
      REQUIRE(sign.size() == 2);
      CHECK(document.text.rfind(sign) + 1 == static_cast<size_t>(question.fact_offset));
      // No other fact was last mentioned nearer to the depth.
      const double off = std::fabs(static_cast<double>(question.fact_offset) - depth * document.text.size());
      for (const Fact& fact : document.facts)
        if (const size_t last = document.text.rfind(fact.key + fact.value); last != std::string::npos)
          CHECK(off <= std::fabs(static_cast<double>(last + 1) - depth * document.text.size()));
    }
}

TEST_CASE("questions are answered by their document") {
  const TemporaryDirectory folder;
  const CorpusOptions options{.seed = 9, .min_bytes = 1000, .max_bytes = 3000};
  const CorpusSize size =
      write_synthetic_corpus(folder / "q.json", CorpusFormat::alpaca, options, {50'000, 0});
  const Json records = read_json(folder / "q.json");
  REQUIRE(std::ssize(records) == size.documents);
  for (size_t index = 0; index < records.size(); ++index) {
    const Json& record = records[index];
    const std::string instruction = record.at("instruction");
    const SyntheticDocument document = synthetic_document(options, index);
    const auto asked = std::find_if(document.facts.begin(), document.facts.end(), [&](const Fact& fact) {
      return instruction == document.text + "\n" + fact.question;
    });
    REQUIRE(asked != document.facts.end());
    const std::string output = record.at("output");
    CHECK(output.ends_with(" " + asked->key + asked->value + "."));
    CHECK(document.text.find(output.substr(0, output.size() - 1)) != std::string::npos);
    CHECK(record.at("input") == "");
  }
}
