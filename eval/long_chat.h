// Retrieval tests in the manner of LongChat's (LMSYS, 2023), worded here and drawn from the project's own
// words: the number of one line among hundreds, the first topic of many conversations, and a fact planted in
// the pages of a book. The first tokens of the answer are given, as in passkey retrieval, so that what is
// measured is whether the model finds the rest and not how it likes to begin.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "data/book_questions.h"
#include "data/long_question.h"
#include "data/templates.h"
#include "data/tokenizer.h"
#include "eval/retrieval.h"

namespace sinklora {

// Writes the question of a trial with an instruction of at most `bytes` bytes, not fewer than `smallest`, and
// leaves as few of them free as it can. The model is given instruction and lead, and is to say the value.
struct RetrievalWriter {
  int64_t smallest = 0;
  std::function<LongQuestion(int64_t bytes, int64_t trial, const std::optional<double>& depth)> write;
};

// "line amber-lantern: REGISTER_CONTENT is <24169>", line after line, each name once; one line is asked for.
RetrievalWriter lines_writer(uint64_t seed);
// Conversations between a user and an assistant, each about another topic; the first is asked for, whatever
// the depth.
RetrievalWriter topics_writer(uint64_t seed);
RetrievalWriter book_questions_writer(BookQuestions questions);
// Questions about the documents of `corpus`.
RetrievalWriter synthetic_questions_writer(uint64_t seed);

// Prompts in the template, tokenized as `tokenize --format alpaca` does it, of at most the wanted tokens.
// `tokenizer` must outlive the task.
RetrievalTask worded_task(const Tokenizer& tokenizer, InstructionTemplate form, RetrievalWriter writer);

}  // namespace sinklora
