#include "data/templates.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "base/error.h"
#include "test/temporary.h"

using namespace sinklora;

namespace {

const std::vector<Message> kConversation = {
    {"system", "Be brief."}, {"user", " Hi </s> there \n"}, {"assistant", "Hello\n"}, {"user", "Bye"}};

// One line a segment: what it is, and its text.
std::string written(ChatTemplate form, const Tokenizer& tokenizer, std::span<const Message> messages,
                    bool reply_next) {
  std::string out;
  for (const Segment& segment : chat_segments(form, tokenizer, messages, reply_next))
    out += fmt::format("{}{}[{}]\n", segment.control ? 'C' : 'T', segment.scored ? '*' : ' ', segment.text);
  return out;
}

}  // namespace

TEST_CASE("instruction templates") {
  using enum InstructionTemplate;
  CHECK(instruction_prompt(none, "Do.") == "Do.");
  CHECK(instruction_prompt(none, "Do.", "this") == "Do.\nthis");
  CHECK(instruction_prompt(llama2, "Do.") == "[INST]Do.[/INST]");
  CHECK(instruction_prompt(llama2, "Do.", "this") ==
        "[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as helpfully as "
        "possible, while "
        "being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, "
        "dangerous, or illegal "
        "content. Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a "
        "question does not "
        "make any sense, or is not factually coherent, explain why instead of answering something not "
        "correct. If you don't "
        "know the answer to a question, please don't share false information.\n<</SYS>> \n\n Do. \nthis "
        "[/INST]");
  CHECK(instruction_prompt(alpaca, "Do.") ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n"
        "### Instruction:\nDo.\n\n### Response:");
  CHECK(instruction_prompt(alpaca, "Do.", "this") ==
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nDo.\n\n### Input:\nthis\n\n### "
        "Response:");
  CHECK(instruction_template("llama2") == llama2);
  CHECK_THROWS_AS(instruction_template("vicuna"), Error);
}

TEST_CASE("chat templates") {
  const auto byte = open_tokenizer("byte");
  CHECK(written(chat_template("llama-2"), *byte, kConversation, true) ==
        "C [<s>]\nT [[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi </s> there [/INST]]\nT*[ Hello "
        "]\nC*[</s>]\nC [<s>]\n"
        "T [[INST] Bye [/INST]]\n");
  CHECK(written(chat_template("llama-3"), *open_tokenizer(test::golden("tokenizer/llama3.json")),
                kConversation, true) ==
        "C [<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n]\nT [Be brief.]\n"
        "C [<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n]\nT [Hi </s> there]\n"
        "C [<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n]\nT*[Hello]\nC*[<|eot_id|>]\n"
        "C [<|start_header_id|>user<|end_header_id|>\n\n]\nT [Bye]\n"
        "C [<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n]\n");
  CHECK(written(chat_template("chatml"), *byte, kConversation, true) ==
        "C [<|im_start|>system\n]\nT [Be brief.]\nC [<|im_end|>\n<|im_start|>user\n]\nT [ Hi </s> there \n]\n"
        "C [<|im_end|>\n<|im_start|>assistant\n]\nT*[Hello\n]\nC*[<|im_end|>]\nC [\n<|im_start|>user\n]\nT "
        "[Bye]\n"
        "C [<|im_end|>\n<|im_start|>assistant\n]\n");
  CHECK(written(chat_template("alpaca"), *byte, kConversation, true) ==
        "T [Be brief.\n\n### Instruction:\n Hi </s> there \n\n\n### Response:]\nT*[Hello\n]\nC*[</s>]\n"
        "T [\n\n### Instruction:\nBye\n\n### Response:]\n");
  CHECK_THROWS_AS(chat_template("jinja"), Error);
}

TEST_CASE("LLaMA's templates trim what Python's str.strip() takes for white space") {
  const auto byte = open_tokenizer("byte");
  const std::vector<Message> messages = {{"user",
                                          "\x1c \x1f\xc2\xa0 a\x1d"
                                          "b \x1e\n\x1c"},
                                         {"assistant", "\x1f\x1f"}};
  CHECK(written(chat_template("llama-2"), *byte, messages, false) ==
        "C [<s>]\nT [[INST] a\x1d"
        "b [/INST]]\nT*[  ]\nC*[</s>]\n");
  const std::string llama3 = written(chat_template("llama-3"), *byte, messages, false);
  CHECK(llama3.find("[a\x1d"
                    "b]") != std::string::npos);
  CHECK(llama3.find('\x1f') == std::string::npos);
}

TEST_CASE("conversations that a template has no place for are refused") {
  const auto byte = open_tokenizer("byte");
  const auto refused = [&](ChatTemplate form, const std::vector<Message>& messages, bool reply_next) {
    CHECK_THROWS_AS(chat_segments(form, *byte, messages, reply_next), Error);
  };
  using enum ChatTemplate;
  for (const ChatTemplate form : {llama2, llama3, chatml, alpaca}) {
    refused(form, {}, true);
    refused(form, {{"tool", "x"}}, true);
    refused(form, {{"user", "x"}, {"assistant", "y"}}, true);
  }
  refused(llama2, {{"assistant", "x"}}, false);
  refused(alpaca, {{"user", "x"}, {"user", "y"}}, true);
}

TEST_CASE("an encoded conversation has one BOS in front, and user text makes no special token") {
  const auto byte = open_tokenizer("byte");
  for (const std::string name : {"llama-2", "chatml", "alpaca"}) {
    const EncodedSegments encoded = encode_chat(chat_template(name), *byte, kConversation, true);
    CHECK(encoded.ids[0] == byte->bos_id);
    CHECK(encoded.ids[1] != byte->bos_id);
    CHECK(std::count(encoded.ids.begin(), encoded.ids.end(), byte->eos_id) == (name == "chatml" ? 0 : 1));
    REQUIRE(encoded.ids.size() == encoded.scored.size());
    std::string scored;
    for (size_t i = 0; i < encoded.ids.size(); ++i)
      if (encoded.scored[i]) scored += byte->piece(encoded.ids[i]);
    CHECK(scored == (name == "llama-2"  ? " Hello </s>"
                     : name == "chatml" ? "Hello\n<|im_end|>"
                                        : "Hello\n</s>"));
  }
}
