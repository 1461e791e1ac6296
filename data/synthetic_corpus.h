// Long documents for the demo and the tests, made by a small grammar: facts are stated, a plain narrative
// goes on, and the same facts come back word for word after distances from a line to the whole document. Each
// document draws its own facts, so no weights can know them: only a model that reads far back predicts the
// names and numbers.
//
//   Maren Kadomi is new here. The boat Osprey 4817 is new here. The old miller walked to the river at dawn.
//   ...
//   ... The boat Osprey 4817 lay by the bridge at noon. Maren Kadomi came over the bridge in the rain.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

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
  std::string key;       // "Maren", "Osprey"
  std::string value;     // "Kadomi", "4817": one blank after the key wherever that occurs
  std::string question;  // "What is the surname of Maren?"
};

struct SyntheticDocument {
  std::string text;  // ASCII, ends with a newline
  std::vector<Fact> facts;
  std::vector<FactMention> mentions;  // by offset
};

// Document number `index` of the corpus: depends on (options, index) alone. Its text is at most the drawn
// length and at most one sentence shorter.
SyntheticDocument synthetic_document(const CorpusOptions& options, uint64_t index);

enum class CorpusFormat {
  jsonl,   // one file, a line {"text": ...} a document
  text,    // a folder of files 000000.txt ...
  alpaca,  // one file, a JSON array of {"instruction": document and question, "input": "", "output": the
           // value}
};

struct CorpusSize {
  int64_t documents = 0, bytes = 0;  // bytes of document text
};

// Writes documents until their text adds up to at least `bytes`. The file or folder appears whole or not at
// all.
CorpusSize write_synthetic_corpus(const std::filesystem::path& out, CorpusFormat format,
                                  const CorpusOptions& options, int64_t bytes);

}  // namespace sinklora
