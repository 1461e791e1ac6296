// The texts that surround instructions and chat turns, as pieces that are tokenized one by one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sinklora {

struct PromptPiece {
  enum class Kind { text, bos, eos };
  Kind kind = Kind::text;
  std::string text;     // of kind text
  bool scored = false;  // the model learns to predict these tokens
};

struct ChatMessage {
  std::string role, content;
};

// What precedes the answer to an instruction; `input` may be empty. Names: "llama2", "alpaca", "none".
std::string instruction_prompt(std::string_view name, std::string_view instruction, std::string_view input);

// A conversation, the assistant's turns scored. Throws Error(input), naming `place`, on roles out of order.
std::vector<PromptPiece> chat_prompt(std::string_view name, const std::vector<ChatMessage>& messages,
                                     const std::string& place);

}  // namespace sinklora
