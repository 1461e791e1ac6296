// Questions about long passages of books, each with one answer that stands in the passage and nowhere else.
// Sentences like
//   The access code of the amber lantern is 48213.
// are planted between the sentences of the book, each about another thing; one of them is asked for. Names
// and numbers are drawn anew for every passage, so only a model that reads far back can answer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "data/long_question.h"

namespace sinklora {

struct BookQuestionOptions {
  uint64_t seed = 1;
  int64_t facts = 4;      // planted in each passage
  int64_t asked = 1;      // of these, at most, in one question: how many is drawn evenly from 1 up
  bool held_out = false;  // draws from the things and numbers that questions not held out never have
};

class BookQuestions {
 public:
  // Reads the books, UTF-8 text, into memory: one long text, in the order given, that begins again at its
  // end. Throws Error(input) when there is no text.
  BookQuestions(std::span<const std::filesystem::path> books, const BookQuestionOptions& options);

  // Question number `index`, whose instruction has at most `bytes` bytes and hardly fewer. `depth`: the part
  // of the passage in front of the asked fact; without it, it is drawn evenly. Depends on books, options and
  // arguments alone. Throws Error(usage) when so few bytes have no room for the facts.
  LongQuestion make(uint64_t index, int64_t bytes, std::optional<double> depth = std::nullopt) const;
  int64_t smallest() const;  // bytes that make() can do with

 private:
  std::string passage(uint64_t start, int64_t bytes) const;

  BookQuestionOptions options_;
  std::string text_;
};

}  // namespace sinklora
