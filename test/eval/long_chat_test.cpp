#include "eval/long_chat.h"

#include <doctest/doctest.h>

#include <map>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "test/data/fixtures.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
    end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
  }
  return lines;
}

// Looks the answer up in the prompt, and says it byte by byte.
class Reader : public Session {
 public:
  explicit Reader(bool reads) : reads_(reads) {}
  std::vector<float> extend(std::span<const int32_t> added) override {
    if (added.size() > 1) {
      text_.clear(), said_ = 0;
      for (const int32_t id : added) text_ += id < 256 ? static_cast<char>(id) : '^';
      const size_t lead = text_.rfind("line ");
      answer_ = text_.substr(text_.find(text_.substr(lead)) + text_.size() - lead);
    }
    std::vector<float> logits(259);
    logits[reads_ ? static_cast<unsigned char>(answer_.at(said_++)) : 'x'] = 1;
    return logits;
  }
  void reset() override {}
  int64_t length() const override { return std::ssize(text_); }
  int64_t context() const override { return 1 << 20; }
  int64_t cache_bytes() const override { return 0; }

 private:
  bool reads_;
  std::string text_, answer_;
  size_t said_ = 0;
};

}  // namespace

TEST_CASE("retrieval of lines: each name once, the asked one at its depth, as many as fit") {
  const RetrievalWriter writer = lines_writer(4);
  for (const int64_t bytes : {writer.smallest, int64_t{4000}, int64_t{100'000}})
    for (const std::optional<double> depth : {std::optional<double>(), {0.0}, {0.5}, {1.0}}) {
      const LongQuestion text = writer.write(bytes, 7, depth);
      CHECK(std::ssize(text.instruction) <= bytes);
      CHECK(std::ssize(text.instruction) > bytes - 160);
      std::map<std::string, std::string> numbers;
      std::vector<std::string> order;
      for (const std::string& line : lines_of(text.instruction))
        if (const size_t is = line.find(" is <"); is != std::string::npos) {
          CHECK(numbers.emplace(line.substr(0, is + 3), line.substr(is + 3)).second);
          order.push_back(line.substr(0, is + 3));
        }
      REQUIRE(numbers.contains(text.lead));
      CHECK(numbers.at(text.lead) == text.value);
      const std::string name = text.lead.substr(0, text.lead.find(':'));
      CHECK(text.instruction.ends_with("REGISTER_CONTENT in " + name + "?\n"));
      if (depth)
        CHECK(text.lead == order[static_cast<size_t>(*depth * static_cast<double>(order.size() - 1) + 0.5)]);
      CHECK(writer.write(bytes, 7, depth).instruction == text.instruction);
      CHECK(writer.write(bytes, 8, depth).instruction != text.instruction);
      CHECK(lines_writer(5).write(bytes, 7, depth).instruction != text.instruction);
    }
}

TEST_CASE("retrieval of topics: conversations about topics of their own, the first asked for") {
  const RetrievalWriter writer = topics_writer(2);
  std::set<std::string> firsts;
  for (int64_t trial = 0; trial < 30; ++trial)
    for (const int64_t bytes : {writer.smallest, int64_t{30'000}}) {
      const LongQuestion text = writer.write(bytes, trial, std::nullopt);
      CHECK(std::ssize(text.instruction) <= bytes);
      CHECK(std::ssize(text.instruction) > bytes - 1700);
      std::vector<std::string> topics;
      const std::string opening = "USER: I would like to talk about";
      for (const std::string& line : lines_of(text.instruction))
        if (line.starts_with(opening))
          topics.push_back(line.substr(opening.size(), line.size() - opening.size() - 1));
      REQUIRE(topics.size() >= (bytes == 30'000 ? 18 : 1));
      CHECK(topics[0] == text.value);
      CHECK(std::set(topics.begin(), topics.end()).size() == topics.size());
      firsts.insert(text.value);
    }
  CHECK(firsts.size() > 25);
}

TEST_CASE("worded prompts: at most the wanted tokens, and the ids of the same text tokenized for training") {
  for (const std::string file : {"byte", "sentencepiece.model", "gpt2.json"}) {
    CAPTURE(file);
    const auto tokenizer =
        open_tokenizer(file == "byte" ? std::filesystem::path(file) : test::golden("tokenizer/" + file));
    for (const std::string form : {"none", "llama2", "alpaca"}) {
      const RetrievalWriter writer = lines_writer(1);
      const RetrievalTask task = worded_task(*tokenizer, instruction_template(form), writer);
      for (const int64_t tokens : {1200, 3000}) {
        const RetrievalPrompt prompt = task(tokens, 3, 0.5);
        const int64_t size = std::ssize(prompt.ids) + std::ssize(prompt.answer);
        CHECK(size <= tokens);
        CHECK(size > tokens - 80);  // less than a line and the accuracy of the search
        std::vector<int32_t> ids = prompt.ids;
        ids.insert(ids.end(), prompt.answer.begin(), prompt.answer.end());
        const std::string text = tokenizer->decode(ids);
        CHECK(text.ends_with(tokenizer->decode(prompt.answer)));
        CHECK(tokenizer->decode(prompt.answer).find('<') <= 1);
        // The same, from the instruction that is in it.
        const size_t begin = text.find("Below is a record"), end = text.rfind("?\n") + 2;
        const size_t lead = text.rfind("line ");
        const Segment parts[] = {
            {instruction_prompt(instruction_template(form), text.substr(begin, end - begin)), false, false},
            {text.substr(lead), false, true}};
        std::vector<int32_t> wanted = tokenizer->encode_segments(parts).ids;
        if (tokenizer->add_bos) wanted.insert(wanted.begin(), tokenizer->bos_id);
        CHECK(ids == wanted);
      }
    }
    CHECK_THROWS_WITH_AS(worded_task(*tokenizer, InstructionTemplate::none, lines_writer(1))(20, 0, {}),
                         doctest::Contains("20 tokens have no room"), Error);
  }
}

TEST_CASE("retrieval of lines counts a session that reads as right and another as wrong") {
  const auto byte = open_tokenizer("byte");
  const RetrievalTask task = worded_task(*byte, InstructionTemplate::llama2, lines_writer(9));
  const RetrievalOptions options{.max_tokens = 2000, .interval = 1000, .depths = 2, .trials = 3};
  for (const bool reads : {true, false}) {
    Reader session(reads);
    for (const RetrievalCell& cell : measure_retrieval(session, task, options, false))
      CHECK(cell.correct == (reads ? 3 : 0));
  }
}

// Behind what standard error says: that RoPE is not the model's own.
static Json record_of(const ProgramRun& run) {
  CHECK(run.output.find("note: a context of ") != std::string::npos);
  return parse_json(run.output.substr(run.output.find('{')), "output");
}

TEST_CASE("program: eval lines, topics and questions, with every cache policy") {
  const TemporaryDirectory folder;
  write_file(folder / "book.txt", "It was late. The rain fell on the harbour, and nobody spoke. ");
  const std::string model = " --model " + std::string(SINKLORA_SOURCE_DIR) + "/assets/tiny-llama --json - ";
  for (const std::string& verb :
       {std::string("lines --depths 2 --max-tokens 500"), std::string("topics --max-tokens 2400"),
        std::string("questions --depths 2 --max-tokens 300"),
        "questions --template alpaca --max-tokens 700 --facts 2 --books " + (folder / "book.txt").string()})
    for (const std::string cache : {"full", "h2o --cache-budget 0.5", "streaming --cache-budget 100"}) {
      const std::string length = verb.substr(verb.find("tokens ") + 7, 4);
      const ProgramRun run = run_program("eval " + verb + " --interval " + std::to_string(std::stoi(length)) +
                                         " --trials 1" + model + "--cache " + cache);
      CAPTURE(run.output);
      REQUIRE(run.exit_code == 0);
      const Json result = record_of(run);
      CHECK(result.at("protocol") == verb.substr(0, verb.find(' ')));
      CHECK(result.at("trials") == (verb.find("--depths 2") != std::string::npos ? 2 : 1));
      CHECK(result.at("cache") == cache.substr(0, cache.find(' ')));
      if (cache != "full") {
        const bool streams = cache[0] == 's';
        CHECK(result.at("cache_tokens") ==
              (streams ? 100 : std::lround(result.at("context").get<double>() / 2)));
        CHECK(result.at("cache_positions") == (streams ? "index" : "original"));
      }
      CHECK(result.at("attention") == "full");
    }
  CHECK(run_program("eval topics --depths 3" + model).exit_code == 2);
}

TEST_CASE("program: trials shared by several processes give the record of one, which says what was asked") {
  const TemporaryDirectory folder;
  write_file(folder / "book.txt", "It was late. The rain fell on the harbour, and nobody spoke. ");
  const std::string common = " --trials 5 --depths 3 --max-tokens 1400 --interval 700 --model " +
                             std::string(SINKLORA_SOURCE_DIR) + "/assets/tiny-llama --json - --gpus ";
  for (const std::string& verb :
       {std::string("passkey"),
        "questions --template alpaca --seed 3 --facts 2 --books " + (folder / "book.txt").string()}) {
    const ProgramRun alone = run_program("eval " + verb + common + "1"),
                     three = run_program("eval " + verb + common + "3");
    CAPTURE(three.output);
    REQUIRE(three.exit_code == 0);
    CHECK(three.output == alone.output);
    const Json record = record_of(alone);
    CHECK(record.at("trials") == 30);
    CHECK(record.at("rope_scaling").get<std::string>().rfind("linear x", 0) == 0);
    if (verb == "passkey") continue;
    CHECK(record.at("template") == "alpaca");
    CHECK(record.at("seed") == 3);
    CHECK(record.at("facts") == 2);
    CHECK(record.at("held_out") == false);
    CHECK(record.at("books").at(0).at("sha256").get<std::string>().size() == 64);
  }
}
