// sinklora corpus: long synthetic documents whose facts come back far apart.
#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "cli/option_checks.h"
#include "cli/verbs.h"
#include "data/synthetic_corpus.h"

namespace sinklora {

void add_corpus(CLI::App& app) {
  struct Options {
    std::string out, format = "jsonl";
    int64_t bytes = 2000'000, shortest = 2000, longest = 8000, seed = 1;
  };
  auto options = std::make_shared<Options>();
  CLI::App& verb = *app.add_subcommand("corpus", "make synthetic long documents to try a fine-tuning with");
  verb.add_option("--out", options->out, "the file to write; a folder for --format text")
      ->required()
      ->type_name("PATH");
  add_choice(
      verb, "--format", options->format,
      "jsonl: a line {\"text\"} a document; text: a file a document; alpaca: questions about each document",
      {"jsonl", "text", "alpaca"});
  add_count(verb, "--bytes", options->bytes, "stop when the documents add up to this much text", 1);
  add_count(verb, "--shortest", options->shortest, "bytes of the shortest document", 200, 100'000'000);
  add_count(verb, "--longest", options->longest, "bytes of the longest document", 200, 100'000'000);
  add_count(verb, "--seed", options->seed, "equal seeds make equal documents");
  verb.footer(
      "Examples:\n"
      "  sinklora corpus --out train.jsonl --bytes 4M\n"
      "  sinklora corpus --out held-out.jsonl --bytes 200k --seed 2\n"
      "  sinklora corpus --out questions.json --format alpaca --shortest 4k --longest 4k\n"
      "Exit codes: 0 done, 2 wrong command line, 3 the output cannot be written.");
  verb.callback([options] {
    if (options->shortest > options->longest)
      fail_usage("--shortest {} is above --longest {}", options->shortest, options->longest);
    const CorpusFormat format = options->format == "jsonl"  ? CorpusFormat::jsonl
                                : options->format == "text" ? CorpusFormat::text
                                                            : CorpusFormat::alpaca;
    const CorpusSize size = write_synthetic_corpus(
        options->out, format, {static_cast<uint64_t>(options->seed), options->shortest, options->longest},
        options->bytes);
    fmt::print("{}: {} documents, {} bytes of text\n", options->out, size.documents, size.bytes);
  });
}

}  // namespace sinklora
