// A question about a long text, as an instruction record has it and as a retrieval test asks it.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"

namespace sinklora {

struct LongQuestion {
  std::string instruction;  // the text, then the question
  std::string lead;         // how the answer begins: "The access code of the amber lantern is"
  std::string value;        // how it goes on: " 48213"
  std::string rest;         // the sentences about the other asked facts
  int64_t fact_offset = 0;  // of the first asked fact's sentence in `instruction`
  std::string answer() const { return lead + value + "." + rest; }
};

// {"instruction", "input": "", "output"}: a record of a file of instructions.
inline Json to_record(const LongQuestion& question) {
  return {{"instruction", question.instruction}, {"input", ""}, {"output", question.answer()}};
}

}  // namespace sinklora
