// A tokenizer file and a text for it: one byte, the text of that many bytes, then the file, which is a
// tokenizer.json where it begins with a brace and a tokenizer.model otherwise. Nothing but an Error of code
// input may come out, ids are of the vocabulary, and they decode.
#include <cstdlib>

#include "base/error.h"
#include "data/vocabulary_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sinklora;
  if (size == 0) return 0;
  const std::string_view all(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::string_view text = all.substr(0, data[0]);
  const std::string_view file = all.substr(text.size());
  try {
    const auto tokenizer =
        file.starts_with('{') ? parse_tokenizer_json(file, "fuzz") : parse_sentencepiece(file, "fuzz");
    for (const bool parse_special : {false, true}) {
      const auto ids = tokenizer->encode(text, parse_special);
      for (const int32_t id : ids)
        if (id < 0 || id >= tokenizer->vocab_size) std::abort();
      tokenizer->decode(ids, true);
    }
  } catch (const Error& error) {
    if (error.code != ExitCode::input) std::abort();
  }
  return 0;
}
