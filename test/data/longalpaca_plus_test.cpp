// scripts/build_longalpaca_plus.py, where there is a python3 to run it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "test/data/fixtures.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

bool has_python() {
  const bool found = std::system("python3 --version >/dev/null 2>&1") == 0;
  if (!found) MESSAGE("no python3: scripts/build_longalpaca_plus.py is not tested");
  return found;
}

// Exit code and output of the script.
ProgramRun build(const std::string& arguments) {
  const std::string command = "python3 " + std::string(SINKLORA_SOURCE_DIR) +
                              "/scripts/build_longalpaca_plus.py --program " + SINKLORA_PROGRAM + " " +
                              arguments + " 2>&1";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe);
  ProgramRun run;
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) run.output.append(buffer, got);
  run.exit_code = WEXITSTATUS(::pclose(pipe));
  return run;
}

std::string lines(std::vector<Json> records, bool backwards = false) {
  if (backwards) std::reverse(records.begin(), records.end());
  std::string text;
  for (const Json& record : records) text += record.dump() + "\n";
  return text;
}

// A file of each part, in the formats they come in; 20 usable records each.
struct Sources {
  explicit Sources(bool backwards) {
    std::vector<Json> questions, texts, books, longs;
    for (int i = 0; i < 20; ++i) {
      const std::string n = std::to_string(i);
      questions.push_back({{"question_text", "who is number " + n},
                           {"document_text", "<P> Number " + n + " is Miss Marple . </P> <B> The end </B>"},
                           {"annotations",
                            {{{"short_answers", {{{"start_token", 4}, {"end_token", 6}}}},
                              {"yes_no_answer", "NONE"},
                              {"long_answer", {{"start_token", 0}, {"end_token", 8}}}}}}});
      texts.push_back(
          {{"text", "Text " + n + " " + std::string(300, 'a' + static_cast<char>(i)) + " one two three four"},
           {"meta", Json::object()}});
      books.push_back({{"chapter", "Chapter " + n + " is long."}, {"summary_text", "Short " + n + "."}});
      longs.push_back(
          {{"instruction", std::string(5000, 'x') + n}, {"output", "Answer: " + n}, {"input", nullptr}});
    }
    questions.push_back(
        {{"question_text", "unanswered"}, {"document_text", "a b"}, {"annotations", Json::array()}});
    texts.push_back(texts[3]);
    longs.push_back({{"instruction", "short"}, {"output", "left out"}});
    write_file(folder / "nq.jsonl", lines(questions, backwards));
    write_file(folder / "rp.jsonl", lines(texts, backwards));
    write_file(folder / "books.jsonl", lines(books, backwards));
    if (backwards) std::reverse(longs.begin(), longs.end());
    write_file(folder / "longqa.json", Json(longs).dump());
  }
  std::string option(const std::string& part, const std::string& file) const {
    return " --" + part + " " + (folder / file).string();
  }
  std::string all() const {
    return option("natural-questions", "nq.jsonl") + option("redpajama", "rp.jsonl") +
           option("book-summaries", "books.jsonl") + option("longqa", "longqa.json");
  }
  std::string out() const { return " --out " + (folder / "out.json").string(); }
  Json records() const { return read_json(folder / "out.json"); }
  Json facts() const { return read_json(folder / "out.json.record.json"); }

  TemporaryDirectory folder;
};

std::map<std::string, int> counts(const Json& records) {
  std::map<std::string, int> counts;
  for (const Json& record : records) ++counts[record.at("source")];
  return counts;
}

}  // namespace

TEST_CASE("LongAlpaca-plus: the paper's shares, whatever the order of the input; the record has every hash") {
  if (!has_python()) return;
  const Sources sources(false), backwards(true);
  const ProgramRun run = build(sources.all() + sources.out() + " --total 28");
  REQUIRE_MESSAGE(run.exit_code == 0, run.output);
  const Json records = sources.records();
  CHECK(counts(records) ==
        std::map<std::string, int>{
            {"natural-questions", 12}, {"redpajama", 8}, {"book-summaries", 5}, {"longqa", 3}});
  for (const Json& record : records) {
    const std::string instruction = record.at("instruction"), output = record.at("output");
    CAPTURE(record.dump());
    if (record.at("source") == "natural-questions") {
      CHECK(output == "Miss Marple");
      CHECK(instruction.find("Miss Marple . The end\n\nThe document ends here. Who is number ") !=
            std::string::npos);
      CHECK(instruction.ends_with("?"));
    } else if (record.at("source") == "redpajama") {
      CHECK(output.ends_with("one two three four"));
      CHECK(instruction.starts_with("Below is the beginning of a text. Continue it.\n\nText "));
    } else if (record.at("source") == "book-summaries") {
      CHECK(output.starts_with("Short "));
    } else {
      CHECK(instruction.size() > 5000);
    }
  }
  const Json facts = sources.facts();
  CHECK(facts.at("records") == 28);
  CHECK(facts.at("output").at("sha256") == sha256_of_file(sources.folder / "out.json"));
  const Json& parts = facts.at("parts");
  CHECK(parts.at("longqa").at("files")[0].at("sha256") == sha256_of_file(sources.folder / "longqa.json"));
  CHECK(parts.at("longqa").at("files")[0].at("unusable") == 1);
  CHECK(parts.at("natural-questions").at("files")[0].at("unusable") == 1);
  CHECK(parts.at("redpajama").at("files")[0].at("duplicates") == 1);
  CHECK(facts.at("books").empty());
  CHECK(facts.at("options") == Json{{"total", 28},
                                    {"continuation", 2000},
                                    {"shortest_longqa", 4000},
                                    {"generate_missing", Json::array()},
                                    {"shortest", 8000},
                                    {"longest", 32000}});
  CHECK(!facts.contains("program"));

  REQUIRE(build(backwards.all() + backwards.out() + " --total 28").exit_code == 0);
  CHECK(backwards.records() == records);
  REQUIRE(build(backwards.all() + backwards.out() + " --total 28 --seed 2").exit_code == 0);
  CHECK(backwards.records() != records);
  CHECK(counts(backwards.records()) == counts(records));
  // The program takes what the script makes.
  CHECK(run_program("tokenize --tokenizer byte --format alpaca --context 600 --input " +
                    (sources.folder / "out.json").string() + " --out " + (sources.folder / "shards").string())
            .exit_code == 0);
}

TEST_CASE("LongAlpaca-plus: a missing part is an error by name, or generated on request and named so") {
  if (!has_python()) return;
  const Sources sources(false);
  const std::string most = sources.option("redpajama", "rp.jsonl") +
                           sources.option("book-summaries", "books.jsonl") +
                           sources.option("longqa", "longqa.json");
  const ProgramRun missing = build(most + sources.out() + " --total 28");
  CHECK(missing.exit_code == 1);
  CHECK(missing.output.find("no --natural-questions, 12 wanted") != std::string::npos);
  CHECK(!std::filesystem::exists(sources.folder / "out.json"));
  const ProgramRun few = build(sources.all() + sources.out() + " --total 100");
  CHECK(few.exit_code == 1);
  CHECK(few.output.find("20 usable records in the files of --natural-questions, 44 wanted") !=
        std::string::npos);

  write_file(sources.folder / "book.txt", "It was late. The rain fell on the harbour, and nobody spoke. ");
  const std::string fill =
      " --total 28 --longest 2000 --shortest 1000 --books " + (sources.folder / "book.txt").string();
  CHECK(build(most + sources.out() + fill + " --generate-missing longqa").exit_code == 1);
  const ProgramRun run = build(most + sources.out() + fill + " --generate-missing natural-questions");
  REQUIRE_MESSAGE(run.exit_code == 0, run.output);
  CHECK(counts(sources.records()) ==
        std::map<std::string, int>{
            {"generated for natural-questions", 12}, {"redpajama", 8}, {"book-summaries", 5}, {"longqa", 3}});
  const Json facts = sources.facts();
  CHECK(facts.at("parts").at("natural-questions").at("generated") == 12);
  CHECK(facts.at("parts").at("natural-questions").at("from_files") == 0);
  CHECK(facts.at("books")[0].at("sha256") == sha256_of_file(sources.folder / "book.txt"));
  CHECK(facts.at("options").at("generate_missing") == Json{"natural-questions"});
  CHECK(facts.at("options").at("shortest") == 1000);
  CHECK(facts.at("options").at("longest") == 2000);
  CHECK(facts.at("program") == "sinklora " SINKLORA_VERSION);
}

TEST_CASE("LongAlpaca-plus: broken files are errors that name file and place") {
  if (!has_python()) return;
  const Sources sources(false);
  const auto broken = [&](const std::string& text) {
    write_file(sources.folder / "nq.jsonl", text);
    const ProgramRun run = build(sources.all() + sources.out() + " --total 28");
    CHECK(run.exit_code == 1);
    CHECK_MESSAGE(run.output.find("nq.jsonl") != std::string::npos, run.output);
    CHECK(run.output.find("Traceback") == std::string::npos);
    CHECK(!std::filesystem::exists(sources.folder / "out.json"));
  };
  broken("{\"question_text\": ");
  broken("{\"question_text\": \"q\", \"document_text\": \"d\", \"annotations\": [7]}\n");
  broken("\xff\xfe");
  const std::string answered = "{\"instruction\": \"Who?\", \"output\": \"She.\"}\n";
  broken("{\"instruction\": \"Who?\", \"output\": \"\\ud800\"}\n");  // half a surrogate pair
  write_file(sources.folder / "nq.jsonl", answered + "{\"instruction\": ");
  CHECK(build(sources.all() + sources.out() + " --total 28").output.find("nq.jsonl: line 2") !=
        std::string::npos);
}

TEST_CASE(
    "LongAlpaca-plus: a byte-order mark is read over; what is not there is said before anything is read") {
  if (!has_python()) return;
  const Sources sources(false);
  const std::string text = read_text(sources.folder / "nq.jsonl", 1 << 20);
  write_file(sources.folder / "nq.jsonl", "\xef\xbb\xbf" + text);
  CHECK(build(sources.all() + sources.out() + " --total 28").exit_code == 0);
  const ProgramRun nowhere =
      build(sources.all() + " --total 28 --out " + (sources.folder / "none/out.json").string());
  CHECK(nowhere.exit_code == 2);
  CHECK(nowhere.output.find("no such folder") != std::string::npos);
  const ProgramRun nothing =
      build(sources.all() + sources.out() + " --books " + (sources.folder / "none.txt").string());
  CHECK(nothing.exit_code == 2);
  CHECK(nothing.output.find("none.txt: no such file") != std::string::npos);
}
