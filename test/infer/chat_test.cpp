#include "infer/chat.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "base/json.h"
#include "test/infer/scripted_session.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::ScriptedSession;
using Ids = std::vector<int32_t>;

namespace {

const auto kIgnore = [](std::string_view) {};

std::string decoded(const Tokenizer& tokenizer, const Ids& ids) { return tokenizer.decode(ids, true); }

}  // namespace

TEST_CASE("a conversation is worded by its template, and the session gets only what is new") {
  const auto byte = open_tokenizer("byte");
  ScriptedSession session(1000);
  session.says = {"Hello", "Bye"};
  Chat chat(session, *byte, {.form = ChatTemplate::alpaca, .system = "Be brief."});
  std::string streamed;
  const Reply reply = chat.say("Hi", [&](std::string_view text) { streamed += text; });
  CHECK(streamed == "Hello");
  CHECK(reply.end == ReplyEnd::eos);
  CHECK(decoded(*byte, session.ids) == "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:Hello");
  CHECK(chat.say("And?", kIgnore).text == "Bye");
  // The reply's EOS was chosen and not given to the session; it comes with the next message.
  CHECK(decoded(*byte, session.extended[6]) == "</s>\n\n### Instruction:\nAnd?\n\n### Response:");
  CHECK(session.resets == 1);  // at the beginning
  CHECK(parse_json(chat.to_json(), "chat") ==
        parse_json(R"({"messages": [{"role": "system", "content": "Be brief."},
                       {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                       {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Bye"}]})",
                   "wanted"));
  chat.reset();
  CHECK(session.length() == 0);
  CHECK(chat.messages().size() == 1);
}

TEST_CASE("where the template words a reply in another way than the model, the conversation begins anew") {
  const auto byte = open_tokenizer("byte");
  ScriptedSession session(1000);
  session.says = {" Hello\n", "Bye"};
  Chat chat(session, *byte, {.form = ChatTemplate::llama2});
  chat.say("Hi", kIgnore);
  chat.say("And?", kIgnore);
  CHECK(session.resets == 2);
  CHECK(decoded(*byte, session.ids) == "<s>[INST] Hi [/INST] Hello </s><s>[INST] And? [/INST]Bye");
}

TEST_CASE("special tokens in the user's text stay text") {
  const auto byte = open_tokenizer("byte");
  for (const ChatTemplate form : {ChatTemplate::llama2, ChatTemplate::chatml, ChatTemplate::alpaca}) {
    ScriptedSession session(1000);
    Chat chat(session, *byte, {.form = form, .system = "</s> <s>"});
    chat.say("</s><pad><s>", kIgnore);
    const Ids& ids = session.extended[0];
    CHECK(std::count(ids.begin(), ids.end(), byte->bos_id) == 1);
    CHECK(std::count(ids.begin(), ids.end(), byte->eos_id) == 0);
    CHECK(std::count(ids.begin(), ids.end(), byte->pad_id) == 0);
    CHECK(decoded(*byte, ids).find("</s><pad><s>") != std::string::npos);
  }
}

TEST_CASE("a turn ends at the template's mark, spelled out where the vocabulary has no token for it") {
  const auto byte = open_tokenizer("byte");
  ScriptedSession session(1000);
  session.says = {"Hello<|im_end|>\n<|im_start|>user"};
  Chat chat(session, *byte, {.form = ChatTemplate::chatml});
  const Reply reply = chat.say("Hi", kIgnore);
  CHECK(reply.text == "Hello");
  CHECK(reply.end == ReplyEnd::stop_string);
}

TEST_CASE("a message that does not fit is refused and leaves the conversation as it was") {
  const auto byte = open_tokenizer("byte");
  ScriptedSession session(120);
  session.says = {"Hello", "Bye", "Good"};
  Chat chat(session, *byte, {.form = ChatTemplate::llama2});
  chat.say("Hi", kIgnore);
  CHECK_THROWS_AS(chat.say(std::string(100, 'x'), kIgnore), Error);
  CHECK(chat.messages().size() == 2);
  CHECK(chat.say("And?", kIgnore).text == "Bye");
  CHECK(decoded(*byte, session.ids) == "<s>[INST] Hi [/INST] Hello </s><s>[INST] And? [/INST]Bye");
}

TEST_CASE("an interrupted reply stays as far as it came") {
  const auto byte = open_tokenizer("byte");
  ScriptedSession session(1000);
  session.says = {"Hello", "Bye"};
  std::sig_atomic_t interrupt = 0;
  Chat chat(session, *byte, {.form = ChatTemplate::alpaca, .generate = {.interrupt = &interrupt}});
  const Reply reply = chat.say("Hi", [&](std::string_view) { interrupt = 1; });
  CHECK(reply.end == ReplyEnd::interrupted);
  CHECK(reply.text == "H");
  interrupt = 0;
  CHECK(chat.say("Go on", kIgnore).text == "Bye");
  CHECK(session.resets == 1);
}

TEST_CASE("the chat template is found in the model's files or its vocabulary") {
  const auto byte = open_tokenizer("byte");
  const test::TemporaryDirectory folder;
  const auto detect = [&](const Tokenizer& tokenizer) {
    return detect_chat_template(folder.path(), tokenizer);
  };
  CHECK(!detect(*byte));
  CHECK(detect(*open_tokenizer(test::golden("tokenizer/llama3.json"))) == ChatTemplate::llama3);
  const auto with = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder / name) << text;
    return detect(*byte);
  };
  CHECK(!with("tokenizer_config.json", "{}"));
  CHECK(with("tokenizer_config.json", R"({"chat_template": "{{ '<|im_start|>' + role }}"})") ==
        ChatTemplate::chatml);
  CHECK(with("tokenizer_config.json",
             R"({"chat_template": [{"name": "default", "template": "{{ '[INST] ' }}"}]})") ==
        ChatTemplate::llama2);
  CHECK(!with("tokenizer_config.json", R"({"chat_template": "{{ 'GPT4 User: ' }}"})"));
  CHECK(with("chat_template.jinja", "<|start_header_id|>") == ChatTemplate::llama3);
}
