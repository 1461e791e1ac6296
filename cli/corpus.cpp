// sinklora corpus: long synthetic documents whose facts come back far apart, and questions about books.
#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "cli/option_checks.h"
#include "cli/verbs.h"
#include "data/synthetic_corpus.h"

namespace sinklora {
namespace {

struct Arguments {
  std::string out, format = "jsonl";
  int64_t shortest = 2000, longest = 8000, seed = 1;
  CorpusLimit limit{2000'000, 0};
  std::vector<std::filesystem::path> books;
  BookQuestionOptions questions;
};

void run(const Arguments& a) {
  if (a.shortest > a.longest) fail_usage("--shortest {} is above --longest {}", a.shortest, a.longest);
  for (const auto& book : a.books)
    if (std::error_code error; std::filesystem::equivalent(book, a.out, error))
      fail_usage("--out {}: is one of --books; choose another output file", a.out);
  const auto seed = static_cast<uint64_t>(a.seed);
  const CorpusOptions options{seed, a.shortest, a.longest};
  CorpusSize size;
  if (!a.books.empty()) {
    if (a.format != "alpaca")
      fail_usage("--books are asked questions about, which are written as --format alpaca, not {}", a.format);
    BookQuestionOptions questions = a.questions;
    questions.seed = seed;
    size = write_book_questions(a.out, BookQuestions(a.books, questions), options, a.limit);
  } else {
    const CorpusFormat format = a.format == "jsonl"  ? CorpusFormat::jsonl
                                : a.format == "text" ? CorpusFormat::text
                                                     : CorpusFormat::alpaca;
    size = write_synthetic_corpus(a.out, format, options, a.limit);
  }
  fmt::print("{}: {} documents, {} bytes of text\n", a.out, size.documents, size.bytes);
}

}  // namespace

void add_corpus(CLI::App& app) {
  const auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  CLI::App& verb = *app.add_subcommand("corpus", "make synthetic long documents to try a fine-tuning with");
  verb.add_option("--out", a.out, "the file to write; a folder for --format text; must not exist")
      ->required()
      ->type_name("PATH");
  add_choice(
      verb, "--format", a.format,
      "jsonl: a line {\"text\"} a document; text: a file a document; alpaca: questions about each document",
      {"jsonl", "text", "alpaca"});
  add_count(verb, "--bytes", a.limit.bytes, "stop when the documents add up to this much text", 1);
  add_count(verb, "--documents", a.limit.documents, "stop at this many instead; 0: go by --bytes");
  add_count(verb, "--shortest", a.shortest, "bytes of the shortest document", 200, 100'000'000);
  add_count(verb, "--longest", a.longest, "bytes of the longest document", 200, 100'000'000);
  add_count(verb, "--seed", a.seed, "equal seeds make equal documents");
  auto* books = verb.add_option_group("Books");
  auto* files =
      books
          ->add_option("--books", a.books,
                       "text files: plant facts in passages of them, and ask for one (--format alpaca)")
          ->type_name("FILE");
  add_count(*books, "--facts", a.questions.facts, "planted in each passage", 1, 500)->needs(files);
  add_count(*books, "--asked", a.questions.asked,
            "of them, at most, in one question; several teach more in a pass over the passage", 1, 500)
      ->needs(files);
  books
      ->add_flag("--held-out", a.questions.held_out,
                 "only things and numbers that questions without it never have")
      ->needs(files);
  verb.footer(
      "Examples:\n"
      "  sinklora corpus --out train.jsonl --bytes 4M\n"
      "  sinklora corpus --out held-out.jsonl --bytes 200k --seed 2\n"
      "  sinklora corpus --out questions.json --format alpaca --shortest 4k --longest 4k\n"
      "  sinklora corpus --out sft.json --format alpaca --books novels/*.txt --longest 14k --documents 5000\n"
      "Exit codes: 0 done, 2 wrong command line, 3 a book cannot be read or the output not be written.");
  verb.callback([arguments] { run(*arguments); });
}

}  // namespace sinklora
