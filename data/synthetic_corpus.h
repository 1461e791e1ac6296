// Long documents for the demo and the tests, made by a small grammar: the log of a harbour, whose boats,
// trains and gates have call signs, a letter and the one byte that belongs to it. A call sign is stated, and
// comes back after distances from half a sentence to about a thousand bytes, in which each of the 26 letters
// has its turn. Each document draws its own, so no weights can know them: only a model that reads far back
// predicts the byte after the letter.
//
//   boat K7 is new here. gate Sq is new here. the tide came in. boat K7 saw Sq at dawn.
//   ...
//   ... train M3 called K7 at noon. gate Sq waited in the rain.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/book_questions.h"

namespace sinklora {

struct CorpusOptions {
  uint64_t seed = 1;
  int64_t min_bytes = 2000;  // of one document; lengths are drawn evenly from min_bytes .. max_bytes
  int64_t max_bytes = 8000;
};

// One place where a document gives a fact's value.
struct FactMention {
  int64_t fact = 0;    // index into SyntheticDocument::facts
  int64_t offset = 0;  // of the value's first byte in the text
  int64_t distance =
      -1;  // bytes back to the same value's mention before this one; -1 where the fact is stated first
};

struct Fact {
  std::string key;       // "K": an upper-case letter, and such letters stand nowhere else
  std::string value;     // "7": one byte, right after the key wherever that occurs
  std::string question;  // "What is the call sign of the boat K?": key and value
};

struct SyntheticDocument {
  std::string text;  // ASCII, ends with a newline
  std::vector<Fact> facts;
  std::vector<FactMention> mentions;  // by offset
};

// Document number `index` of the corpus: depends on (options, index) alone. Its text is at most the drawn
// length and at most one sentence shorter.
SyntheticDocument synthetic_document(const CorpusOptions& options, uint64_t index);

// A question about document number `index`: "What is the call sign of the gate W?", answered as the document
// would say it: "gate Wt.". `depth`: the part of the document in front of the last mention of what is asked
// for, roughly; without it, facts mentioned more often are asked for more often.
LongQuestion synthetic_question(const CorpusOptions& options, uint64_t index,
                                const std::optional<double>& depth = std::nullopt);

enum class CorpusFormat {
  jsonl,   // one file, a line {"text": ...} a document
  text,    // a folder of files 000000.txt ...
  alpaca,  // one file, a JSON array of instruction records, a question about a document each
};

struct CorpusSize {
  int64_t documents = 0, bytes = 0;  // bytes of document text
};

// When a corpus is complete: with so many documents, or, if that is 0, with so many bytes of text.
struct CorpusLimit {
  int64_t bytes = 0, documents = 0;
  bool reached(const CorpusSize& size) const {
    return documents > 0 ? size.documents >= documents : size.bytes >= bytes;
  }
};

// The file or folder appears whole or not at all.
CorpusSize write_synthetic_corpus(const std::filesystem::path& out, CorpusFormat format,
                                  const CorpusOptions& options, const CorpusLimit& limit);
// Questions about passages of books, as CorpusFormat::alpaca; their instructions have the lengths of
// `options`.
CorpusSize write_book_questions(const std::filesystem::path& out, const BookQuestions& questions,
                                const CorpusOptions& options, const CorpusLimit& limit);

}  // namespace sinklora
