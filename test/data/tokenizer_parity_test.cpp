// Against the reference tokenizers: our own small ones always; others' vocabularies, which are not ours to
// keep here, where environment variables name them (scripts/check_tokenizer_parity.py).
#include <chrono>
#include <cstdlib>

#include "test/data/tokenizer_cases.h"
#include "test/temporary.h"

using namespace sinklora;

TEST_CASE("ids equal the reference tokenizers' on hostile text") {
  for (const std::string file : {"gpt2.json", "llama3.json", "smollm.json", "prepend.json", "metaspace.json",
                                 "sentencepiece.model", "normalizing.model"}) {
    CAPTURE(file);
    // prepend.json has the vocabulary of sentencepiece.model, and its reference gave the same ids.
    const std::string cases_of = file == "prepend.json" ? "sentencepiece.model" : file;
    const auto cases = test::golden("tokenizer/" + cases_of).replace_extension(".jsonl");
    const auto counts = test::check_cases(*open_tokenizer(test::golden("tokenizer/" + file)), cases);
    CHECK(counts.texts > 100);
    CHECK(counts.mismatches == 0);
  }
}

TEST_CASE("LLaMA-2's tokenizer, where SINKLORA_LLAMA2_TOKENIZER names it") {
  const char* path = std::getenv("SINKLORA_LLAMA2_TOKENIZER");
  if (!path) return;
  const auto tokenizer = open_tokenizer(path);
  using Ids = std::vector<int32_t>;
  CHECK(tokenizer->encode("Hello world!") == Ids{15043, 3186, 29991});
  CHECK(tokenizer->encode("a\nb  c\xff") == Ids{263, 13, 29890, 29871, 274, 258});
  CHECK(tokenizer->encode("<s>", true) == Ids{1});
  CHECK(tokenizer->decode(Ids{1, 15043, 3186, 29991, 2}) == "Hello world!");
  CHECK(tokenizer->vocab_size == 32000);
  CHECK(tokenizer->bos_id == 1);
  CHECK(tokenizer->eos_id == 2);
  CHECK(tokenizer->add_bos);
}

TEST_CASE("parity with recorded ids, where SINKLORA_PARITY_TOKENIZER and SINKLORA_PARITY_CASES name them") {
  const char* path = std::getenv("SINKLORA_PARITY_TOKENIZER");
  const char* cases = std::getenv("SINKLORA_PARITY_CASES");
  if (!path || !cases) return;
  const auto start = std::chrono::steady_clock::now();
  const auto tokenizer = open_tokenizer(path);
  const std::chrono::duration<double> opening = std::chrono::steady_clock::now() - start;
  const auto counts = test::check_cases(*tokenizer, cases);
  MESSAGE(std::string(path), ": ", counts.texts, " texts, ", counts.tokens, " tokens, ", counts.mismatches,
          " mismatches; opened in ", opening.count(), " s");
  CHECK(counts.mismatches == 0);
}
