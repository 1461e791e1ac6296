#include "data/book_questions.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "data/synthetic_corpus.h"
#include "test/data/fixtures.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kLead = "The access code of the ";

// A book of numbered sentences, so that what a passage lost or gained can be seen.
fs::path book(const TemporaryDirectory& folder, const std::string& name, int sentences) {
  std::string text = "\n\n";
  for (int i = 0; i < sentences; ++i)
    text += fmt::format("Sentence {} of {}.{}", i, name, i % 7 == 6 ? "\n" : " ");
  write_file(folder / name, text);
  return folder / name;
}

// All planted facts: what they are about, and their codes.
std::map<std::string, std::string> facts_of(const std::string& text) {
  std::map<std::string, std::string> facts;
  for (size_t at = 0; (at = text.find(kLead, at)) != std::string::npos; ++at) {
    const size_t is = text.find(" is ", at);
    const std::string name = text.substr(at + kLead.size(), is - at - kLead.size());
    if (name.size() > 20) continue;  // the question
    CHECK(facts.emplace(name, text.substr(is + 4, 5)).second);
    CHECK(text[is + 9] == '.');
  }
  return facts;
}

std::set<std::string> names_and_codes(const BookQuestions& questions) {
  std::set<std::string> found;
  for (uint64_t i = 0; i < 200; ++i)
    for (const auto& [name, code] : facts_of(questions.make(i, 1000).instruction))
      found.insert(name), found.insert(code);
  return found;
}

}  // namespace

TEST_CASE("a question about a book is answered by one planted sentence, at the depth asked for") {
  const TemporaryDirectory folder;
  const std::vector<fs::path> books{book(folder, "one", 300), book(folder, "two", 200)};
  const BookQuestions questions(books, {.seed = 3, .facts = 5});
  std::set<std::string> instructions;
  for (uint64_t index = 0; index < 40; ++index) {
    const int64_t bytes = index % 2 == 0 ? questions.smallest() : 1500;
    for (const std::optional<double> depth : {std::optional<double>(), {0.0}, {0.5}, {1.0}}) {
      const LongQuestion question = questions.make(index, bytes, depth);
      CAPTURE(question.instruction);
      const int64_t size = std::ssize(question.instruction);
      CHECK(size <= bytes);
      CHECK(size > bytes - 60);  // whole words of the book, sentences of one more
      const auto facts = facts_of(question.instruction);
      REQUIRE(facts.size() == 5);
      const size_t asked = question.instruction.rfind("What is the access code of the ");
      const std::string name =
          question.instruction.substr(asked + 31, question.instruction.size() - asked - 32);
      REQUIRE(facts.contains(name));
      CHECK(question.value == fmt::format(" {}", facts.at(name)));
      CHECK(question.lead == std::string(kLead) + name + " is");
      CHECK(question.instruction.substr(static_cast<size_t>(question.fact_offset),
                                        question.answer().size()) == question.answer());
      CHECK(std::count(question.instruction.begin(), question.instruction.end(), '?') == 1);
      if (depth && bytes == 1500)
        CHECK(std::fabs(static_cast<double>(question.fact_offset) / static_cast<double>(asked) - *depth) <
              0.2);
      CHECK(questions.make(index, bytes, depth).instruction == question.instruction);
      if (!depth) instructions.insert(question.instruction);
    }
  }
  CHECK(instructions.size() == 40);
  CHECK_THROWS_WITH_AS(questions.make(0, questions.smallest() - 1), doctest::Contains("no room for 5 facts"),
                       Error);
}

TEST_CASE("several facts may be asked for in one question, and are answered in its order") {
  const TemporaryDirectory folder;
  const std::vector<fs::path> books{book(folder, "one", 300)};
  const BookQuestions questions(books, {.seed = 3, .facts = 4, .asked = 3});
  std::set<int64_t> numbers;
  for (uint64_t index = 0; index < 40; ++index) {
    const int64_t bytes = index % 2 == 0 ? questions.smallest() : 1500;
    const LongQuestion question = questions.make(index, bytes);
    CAPTURE(question.instruction);
    CHECK(std::ssize(question.instruction) <= bytes);
    std::string answer;
    int64_t number = 0;
    for (size_t at = question.instruction.rfind("What is the access code");
         (at = question.instruction.find("of the ", at)) != std::string::npos; ++number) {
      const std::string name =
          question.instruction.substr(at + 7, question.instruction.find('?', at) - at - 7);
      at += 7;
      const std::string lead = std::string(kLead) + name + " is ";
      const size_t fact = question.instruction.find(lead);
      REQUIRE(fact != std::string::npos);
      if (number > 0) answer += ' ';
      answer += question.instruction.substr(fact, lead.size() + 6);
    }
    CHECK(question.answer() == answer);
    numbers.insert(number);
  }
  CHECK(numbers == std::set<int64_t>{1, 2, 3});
  CHECK_THROWS_AS(BookQuestions(books, {.facts = 2, .asked = 3}), Error);
}

TEST_CASE("held-out questions share no thing and no number with the others") {
  const TemporaryDirectory folder;
  const std::vector<fs::path> books{book(folder, "one", 300)};
  const auto trained = names_and_codes(BookQuestions(books, {.seed = 1})),
             held_out = names_and_codes(BookQuestions(books, {.seed = 1, .held_out = true}));
  CHECK(trained.size() > 1000);
  CHECK(held_out.size() > 700);
  std::vector<std::string> both;
  std::set_intersection(trained.begin(), trained.end(), held_out.begin(), held_out.end(),
                        std::back_inserter(both));
  CHECK(both.empty());
}

TEST_CASE("books: short ones go round, multi-byte text stays whole, empty ones are refused by name") {
  const TemporaryDirectory folder;
  write_file(folder / "short", "Größe über alles. Çà et là! 世界 мир?");
  const std::vector<fs::path> books{folder / "short"};
  const BookQuestions questions(books, {});
  for (uint64_t i = 0; i < 50; ++i)  // dump() throws on broken UTF-8
    CHECK_NOTHROW(to_record(questions.make(i, 600 + static_cast<int64_t>(i))).dump());
  write_file(folder / "empty", " \n ");
  const std::vector<fs::path> empty{folder / "short", folder / "empty"};
  CHECK_THROWS_WITH_AS(BookQuestions(empty, {}), doctest::Contains("empty: no text"), Error);
  CHECK_THROWS_AS(BookQuestions(books, {.facts = 0}), Error);
  for (const std::string& bad : {std::string("Gr\xf6\xdf"
                                             "e"),
                                 std::string("a\0b", 3)}) {
    write_file(folder / "bad", bad);
    const std::vector<fs::path> other{folder / "short", folder / "bad"};
    CHECK_THROWS_WITH_AS(BookQuestions(other, {}), doctest::Contains("is no UTF-8 text"), Error);
  }
}

TEST_CASE("program: corpus --books writes as many instruction records as asked for") {
  const TemporaryDirectory folder;
  const std::string command =
      "corpus --out " + (folder / "q.json").string() + " --books " + book(folder, "one", 300).string();
  CHECK(run_program(command + " --format alpaca --documents 12 --shortest 700 --longest 900 --seed 5")
            .exit_code == 0);
  const Json records = read_json(folder / "q.json");
  REQUIRE(records.size() == 12);
  std::set<size_t> sizes;
  for (const Json& record : records) {
    const std::string instruction = record.at("instruction"), output = record.at("output");
    CHECK(instruction.find(output) != std::string::npos);
    CHECK(record.at("input") == "");
    CHECK(instruction.size() <= 900);
    CHECK(instruction.size() > 700 - 60);
    sizes.insert(instruction.size() / 20);
  }
  CHECK(sizes.size() > 3);
  const ProgramRun text = run_program(command + " --format text");
  CHECK(text.exit_code == 2);
  CHECK(text.output.find("--format alpaca, not text") != std::string::npos);
}
