#include "data/book_questions.h"

#include <algorithm>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "data/draws.h"
#include "data/records.h"
#include "data/word_pairs.h"

namespace sinklora {
namespace {

constexpr std::string_view kTask = "Read these pages of a book; a question about them follows.\n\n";
constexpr std::string_view kEnd = "\n\nThe pages end here. What is the access code of the ";
constexpr std::string_view kNext = " And of the ";
constexpr int64_t kLongestBook = int64_t{1} << 31;
constexpr int64_t kLongestName = 24, kLongestFact = 56;  // bytes, with a space or a question mark
constexpr int64_t kLowestCode = 10000, kCodes = 90000;
constexpr int64_t kHeldOutCodes = 7, kHeldOutNames = 5;  // one in so many is held out

struct PlantedFact {
  std::string name, code;
  int64_t place = 0;  // in the passage: in front of this byte
  std::string lead() const { return fmt::format("The access code of the {} is", name); }
  std::string sentence() const { return fmt::format("{} {}.", lead(), code); }
};

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

bool ends_sentence(const std::string& text, int64_t end) {
  return end == 0 || end == std::ssize(text) ||
         (is_space(text[static_cast<size_t>(end)]) &&
          std::string_view(".!?").find(text[static_cast<size_t>(end) - 1]) != std::string_view::npos);
}

// The place between two sentences, or at either end, that is nearest to `wanted`.
int64_t sentence_end_near(const std::string& text, int64_t wanted) {
  for (int64_t away = 0;; ++away) {
    if (wanted - away >= 0 && ends_sentence(text, wanted - away)) return wanted - away;
    if (wanted + away <= std::ssize(text) && ends_sentence(text, wanted + away)) return wanted + away;
  }
}

// Draws until the value is (or is not) one of the held-out ones, which are the multiples of `share`, and not
// in `used`.
int64_t draw_unused(Draws& draws, int64_t bound, int64_t share, bool held_out, std::set<int64_t>& used) {
  while (true) {
    const int64_t value = draws.below(bound);
    if ((value % share == 0) == held_out && used.insert(value).second) return value;
  }
}

}  // namespace

BookQuestions::BookQuestions(std::span<const std::filesystem::path> books, const BookQuestionOptions& options)
    : options_(options) {
  if (options.facts < 1 || options.facts > kWordPairs / kHeldOutNames / 2)
    fail_usage("{} facts in a passage: wanted 1 to {}", options.facts, kWordPairs / kHeldOutNames / 2);
  if (options.asked < 1 || options.asked > options.facts)
    fail_usage("{} of {} facts asked for: wanted 1 to {}", options.asked, options.facts, options.facts);
  for (const std::filesystem::path& book : books) {
    std::string text = read_text(book, kLongestBook);
    clean_text(text, book);
    const auto printed = std::find_if_not(text.begin(), text.end(), is_space);
    if (printed == text.end()) fail_input("{}: no text in it", book.string());
    text_.append(printed, text.end());
    if (!is_space(text_.back())) text_ += '\n';
    text_ += '\n';
  }
  if (text_.empty()) fail_input("no book to ask about");
}

int64_t BookQuestions::smallest() const {
  return std::ssize(kTask) + std::ssize(kEnd) + std::ssize(kNext) * (options_.asked - 1) +
         kLongestName * options_.asked + kLongestFact * options_.facts + 2;
}

// Up to `bytes` bytes of whole words from the first word behind byte `start` on.
std::string BookQuestions::passage(uint64_t start, int64_t bytes) const {
  std::string text;
  while (!is_space(text_[start % text_.size()])) ++start;
  while (is_space(text_[start % text_.size()])) ++start;
  text.reserve(static_cast<size_t>(bytes));
  for (; std::ssize(text) < bytes; ++start) text += text_[start % text_.size()];
  if (!is_space(text_[start % text_.size()]))
    while (!text.empty() && !is_space(text.back())) text.pop_back();
  while (!text.empty() && is_space(text.back())) text.pop_back();
  return text;
}

LongQuestion BookQuestions::make(uint64_t index, int64_t bytes, std::optional<double> depth) const {
  if (bytes < smallest())
    fail_usage("a question of {} bytes has no room for {} facts; it takes {} bytes", bytes, options_.facts,
               smallest());
  Draws draws(options_.seed, "book question", index);
  std::set<int64_t> names, codes;
  std::vector<PlantedFact> facts;
  int64_t planted = 0;
  for (int64_t i = 0; i < options_.facts; ++i) {
    const int64_t name = draw_unused(draws, kWordPairs, kHeldOutNames, options_.held_out, names);
    const int64_t code = draw_unused(draws, kCodes, kHeldOutCodes, options_.held_out, codes);
    facts.push_back({word_pair(name, ' '), std::to_string(kLowestCode + code)});
    planted += std::ssize(facts.back().sentence()) + 1;
  }
  const std::string asked = facts[0].name;
  std::string ending = fmt::format("{}{}?", kEnd, asked), rest;
  for (int64_t i = draws.below(options_.asked); i > 0; --i) {
    ending += fmt::format("{}{}?", kNext, facts[static_cast<size_t>(i)].name);
    (rest += ' ') += facts[static_cast<size_t>(i)].sentence();
  }
  const auto start = static_cast<uint64_t>(draws.below(std::ssize(text_)));
  const std::string pages = passage(start, bytes - planted - std::ssize(kTask) - std::ssize(ending));
  for (PlantedFact& fact : facts) {
    const double share = &fact == &facts[0] && depth ? *depth : draws.uniform();
    fact.place = sentence_end_near(pages, static_cast<int64_t>(share * static_cast<double>(pages.size())));
  }

  LongQuestion question{std::string(kTask), facts[0].lead(), fmt::format(" {}", facts[0].code),
                        std::move(rest), 0};
  std::stable_sort(facts.begin(), facts.end(),
                   [](const PlantedFact& a, const PlantedFact& b) { return a.place < b.place; });
  int64_t written = 0;
  for (const PlantedFact& fact : facts) {
    question.instruction +=
        pages.substr(static_cast<size_t>(written), static_cast<size_t>(fact.place - written));
    written = fact.place;
    if (fact.place > 0) question.instruction += ' ';
    if (fact.name == asked) question.fact_offset = std::ssize(question.instruction);
    question.instruction += fact.sentence();
    if (fact.place == 0) question.instruction += ' ';
  }
  question.instruction += pages.substr(static_cast<size_t>(written)) + ending;
  return question;
}

}  // namespace sinklora
