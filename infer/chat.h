// A conversation with a model, worded as its chat template has it.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/templates.h"
#include "infer/generate.h"

namespace sinklora {

struct ChatOptions {
  ChatTemplate form = ChatTemplate::llama2;
  std::string system{};  // "": none
  SamplingOptions sampling{};
  std::vector<std::string> stops{};  // besides what the template ends a turn with
  GenerateOptions generate{};
};

class Chat {
 public:
  Chat(Session& session, const Tokenizer& tokenizer, ChatOptions options);

  // The user's message and the model's reply, which joins the conversation as far as it came. Throws
  // Error(input) when both do not fit into the context; the conversation is then as it was before.
  Reply say(const std::string& message, const std::function<void(std::string_view)>& on_text);
  // Forgets everything but the system message; the same messages then get the same replies again.
  void reset();
  // {"messages": [...]}, what `tokenize --format chat` reads.
  std::string to_json() const;
  const std::vector<Message>& messages() const { return messages_; }
  const Session& session() const { return session_; }

 private:
  std::vector<int32_t> take_what_is_new(std::vector<int32_t> ids);

  Session& session_;
  const Tokenizer& tokenizer_;
  ChatOptions options_;
  Sampler sampler_;
  TextStream stream_;
  std::vector<Message> messages_;
  std::vector<int32_t> held_;  // what the session holds
};

// The template that a model was tuned with: its directory's chat template, if there is one, or the control
// tokens of its vocabulary tell. Nothing where neither does.
std::optional<ChatTemplate> detect_chat_template(const std::filesystem::path& model,
                                                 const Tokenizer& tokenizer);

}  // namespace sinklora
