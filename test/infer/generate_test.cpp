#include "infer/generate.h"

#include <doctest/doctest.h>

#include <fstream>

#include "base/error.h"
#include "test/infer/scripted_session.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::ScriptedSession;

namespace {

struct Run {
  Reply reply;
  std::string streamed;
  std::vector<int32_t> session;  // what it holds afterwards
};

Run run(const std::string& says, std::vector<std::string> stops, GenerateOptions options,
        int64_t context = 100) {
  const auto byte = open_tokenizer("byte");
  ScriptedSession session(context);
  session.says = {says};
  Sampler sampler({});
  TextStream stream(*byte, std::move(stops));
  options.eos_ids = {'#', byte->eos_id};
  Run result;
  const std::vector<int32_t> prompt{byte->bos_id, 'H', 'i'};
  result.reply = generate(session, prompt, sampler, stream, options,
                          [&](std::string_view text) { result.streamed += text; });
  result.session = session.ids;
  return result;
}

}  // namespace

TEST_CASE("a reply ends at an EOS of the list, a stop string, the token limit or the context") {
  Run eos = run("one#two", {}, {});
  CHECK(eos.reply.text == "one");
  CHECK(eos.streamed == "one");
  CHECK(eos.reply.end == ReplyEnd::eos);
  CHECK(eos.reply.prompt_tokens == 3);
  CHECK(eos.session == std::vector<int32_t>{256, 'H', 'i', 'o', 'n', 'e'});

  const Run stop = run("one two#", {" tw"}, {});
  CHECK(stop.streamed == "one");
  CHECK(stop.reply.ids.size() == 6);
  CHECK(stop.reply.end == ReplyEnd::stop_string);

  const Run longest = run("one two#", {"two"}, {.max_new_tokens = 6});
  CHECK(longest.streamed == "one tw");  // what was held back for the stop string comes at the end
  CHECK(longest.reply.end == ReplyEnd::max_new_tokens);

  const Run full = run("one two#", {}, {}, 8);
  CHECK(full.streamed == "one t");
  CHECK(full.reply.end == ReplyEnd::context_full);

  const volatile std::sig_atomic_t interrupted = 1;
  const Run cut = run("one", {}, {.interrupt = &interrupted});
  CHECK(cut.streamed == "");
  CHECK(cut.reply.end == ReplyEnd::interrupted);
}

TEST_CASE(
    "ids beyond the tokenizer's, rows that pad the model's vocabulary, are never chosen, but one that ends a "
    "text") {
  struct Padded : ScriptedSession {
    using ScriptedSession::ScriptedSession;
    std::vector<float> extend(std::span<const int32_t> added) override {
      std::vector<float> logits = ScriptedSession::extend(added);
      logits.resize(320);
      logits[length() < 6 ? 300 : 301] = 5;
      return logits;
    }
  };
  const auto byte = open_tokenizer("byte");
  for (const double temperature : {0.0, 0.01}) {
    Padded session(100);
    session.says = {"abcdef"};
    Sampler sampler({.temperature = temperature});
    TextStream stream(*byte);
    const std::vector<int32_t> prompt{byte->bos_id, 'H'};
    const Reply reply =
        generate(session, prompt, sampler, stream, {.eos_ids = {301}}, [](std::string_view) {});
    CHECK(reply.text == "abcd");
    CHECK(reply.end == ReplyEnd::eos);
  }
}

TEST_CASE("an empty prompt and an empty reply are refused") {
  const auto byte = open_tokenizer("byte");
  ScriptedSession session(10);
  Sampler sampler({});
  TextStream stream(*byte);
  const std::vector<int32_t> prompt{'x'};
  const auto ignore = [](std::string_view) {};
  CHECK_THROWS_AS(generate(session, {}, sampler, stream, {}, ignore), Error);
  CHECK_THROWS_AS(generate(session, prompt, sampler, stream, {.max_new_tokens = 0}, ignore), Error);
}

TEST_CASE("EOS ids are those of config.json, generation_config.json and the tokenizer") {
  const test::TemporaryDirectory folder;
  LlamaConfig config;
  config.eos_ids = {2};
  const auto byte = open_tokenizer("byte");
  CHECK(end_of_text_ids(config, *byte, folder.path()) == std::vector<int32_t>{2, 257});
  byte->eos_id = 2;
  const auto with = [&](const std::string& text) {
    std::ofstream(folder / "generation_config.json") << text;
    return end_of_text_ids(config, *byte, folder.path());
  };
  CHECK(with(R"({"eos_token_id": 7})") == std::vector<int32_t>{2, 7});
  CHECK(with(R"({"eos_token_id": [2, 9, 7]})") == std::vector<int32_t>{2, 9, 7});
  CHECK(with(R"({"eos_token_id": null})") == std::vector<int32_t>{2});
  CHECK(with("{}") == std::vector<int32_t>{2});
  CHECK(with("[]") == std::vector<int32_t>{2});
  // As transformers does: no token is ever one of these.
  CHECK(with(R"({"eos_token_id": 32000})") == std::vector<int32_t>{2});
  CHECK(with(R"({"eos_token_id": [-1, 7, 4294967303]})") == std::vector<int32_t>{2, 7});
  CHECK_THROWS_AS(with(R"({"eos_token_id": "</s>"})"), Error);
}
