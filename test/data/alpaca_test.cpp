// Ids and labels of instruction records against a transcription of LongLoRA's preprocessing
// (scripts/goldens/make_alpaca_goldens.py), and packed records against separate ones.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>
#include <map>

#include "base/hash.h"
#include "base/json.h"
#include "data/dataset.h"
#include "data/manifest.h"
#include "data/tokenize.h"
#include "test/data/fixtures.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

constexpr int32_t kIgnored = -100;

std::string digest(const std::vector<int32_t>& numbers) {
  return sha256(std::as_bytes(std::span(numbers))).substr(0, 16);
}

// LongLoRA's labels of a row: those of its first token is never scored, the others are the shifted targets.
std::vector<int32_t> labels_of(const Sample& sample) {
  std::vector<int32_t> labels{kIgnored};
  for (size_t t = 0; t + 1 < sample.ids.size(); ++t)
    labels.push_back(sample.targets[t] == kNotScored ? kIgnored : sample.targets[t]);
  return labels;
}

// Tokenizes the 200 records as the golden file says, and compares every row. Returns how many were skipped
// because their prompt fills the context.
int64_t check_golden(const Tokenizer& tokenizer, const std::string& name) {
  const TemporaryDirectory folder(memory_folder());
  const Json golden = read_json(test::golden("alpaca/" + name + ".json"));
  int64_t skipped = 0;
  for (const bool together : {false, true}) {
    CAPTURE(together);
    TokenizeOptions options{{test::golden("alpaca/records.json")},
                            folder / (together ? "together" : "apart"),
                            {"alpaca", golden.at("template"), together, false, golden.at("context")},
                            Packing::none,
                            50,
                            1,
                            false};
    const TokenizeSummary summary = tokenize_files(tokenizer, options);
    const Json& cases = golden.at(together ? "together" : "apart");
    REQUIRE(cases.size() == 200);
    const auto dataset = open_dataset(options.out, {});
    int64_t row = 0, cut = 0;
    for (size_t number = 0; number < cases.size(); ++number) {
      const Json& wanted = cases[number];
      if (wanted.at("scored") == 0) continue;
      CAPTURE(number);
      REQUIRE(row < dataset->size());
      const Sample sample = dataset->read(row++);
      const std::vector<int32_t> labels = labels_of(sample);
      cut += sample.ids.size() == golden.at("context");
      if (wanted.contains("all_ids")) {
        CHECK(sample.ids == wanted.at("all_ids").get<std::vector<int32_t>>());
        CHECK(labels == wanted.at("all_labels").get<std::vector<int32_t>>());
      }
      CHECK(sample.ids.size() == wanted.at("tokens"));
      CHECK(digest(sample.ids) == wanted.at("ids"));
      CHECK(digest(labels) == wanted.at("labels"));
    }
    CHECK(row == dataset->size());
    CHECK(cut > 0);
    CHECK(summary.prompt_fills == 200 - row);
    CHECK(summary.dropped == summary.prompt_fills);
    const Json counts = read_json(options.out / kManifestName).at("post-process");
    CHECK(counts.at("prompt_fills_context") == summary.prompt_fills);
    CHECK(counts.at("truncated") == summary.truncated);
    skipped = summary.prompt_fills;
  }
  return skipped;
}

}  // namespace

TEST_CASE("instructions: ids and labels of 200 records are those of LongLoRA's preprocessing") {
  for (const auto& [name, file] :
       std::map<std::string, std::string>{{"sentencepiece.llama2", "sentencepiece.model"},
                                          {"gpt2.none", "gpt2.json"},
                                          {"gpt2.alpaca", "gpt2.json"}}) {
    CAPTURE(name);
    CHECK(check_golden(*open_tokenizer(test::golden("tokenizer/" + file)), name) >= 10);
  }
}

TEST_CASE("instructions: the same with LLaMA-2's tokenizer, where SINKLORA_LLAMA2_TOKENIZER names it") {
  if (const char* path = std::getenv("SINKLORA_LLAMA2_TOKENIZER"))
    CHECK(check_golden(*open_tokenizer(path), "llama2.llama2") >= 10);
}

TEST_CASE("program: a prompt that fills the context is named, counted and skipped") {
  const TemporaryDirectory folder(memory_folder());
  write_file(folder / "r.json", Json{{{"instruction", "short"}, {"output", "yes"}},
                                     {{"instruction", std::string(60, 'x')}, {"output", "never seen"}},
                                     {{"instruction", "short"}, {"output", std::string(60, 'y')}}}
                                    .dump());
  const auto run = [&](const std::string& policy) {
    return run_program("tokenize --tokenizer byte --format alpaca --context 48 --input " +
                       (folder / "r.json").string() + " --out " + (folder / policy).string() +
                       " --too-long " + policy);
  };
  const ProgramRun cut = run("truncate"), dropped = run("drop");
  CHECK(cut.exit_code == 0);
  CHECK(cut.output.find("r.json: record 1 at byte") != std::string::npos);
  CHECK(cut.output.find("1 truncated, 1 dropped") != std::string::npos);
  CHECK(cut.output.find("1 of the dropped have a prompt that fills the whole context") != std::string::npos);
  CHECK(dropped.exit_code == 0);
  CHECK(dropped.output.find("0 truncated, 2 dropped") != std::string::npos);
  CHECK(dropped.output.find("1 of the dropped have a prompt that fills the whole context") !=
        std::string::npos);
}

TEST_CASE("program: inspect shows an instruction record's tokens against its labels") {
  const TemporaryDirectory folder(memory_folder());
  write_file(folder / "r.json", Json{{{"instruction", "q"}, {"input", nullptr}, {"output", "ab"}}}.dump());
  const std::string out = (folder / "shards").string();
  REQUIRE(run_program("tokenize --tokenizer byte --format alpaca --template none --context 16 --input " +
                      (folder / "r.json").string() + " --out " + out)
              .exit_code == 0);
  const ProgramRun shown = run_program("inspect " + out + " --tokenizer byte --samples 1");
  CHECK(shown.exit_code == 0);
  const std::vector<std::pair<std::string, std::string>> lines = {{"256 \"<s>\"", "-"},
                                                                  {"113 \"q\"", "97 \"a\""},
                                                                  {"97 \"a\"", "98 \"b\""},
                                                                  {"98 \"b\"", "257 \"</s>\""},
                                                                  {"257 \"</s>\"", "-"}};
  for (size_t t = 0; t < lines.size(); ++t) {
    const std::string line = fmt::format("{:>9}  {:<28}  {}\n", t, lines[t].first, lines[t].second);
    CHECK_MESSAGE(shown.output.find(line) != std::string::npos, line, shown.output);
  }
}
