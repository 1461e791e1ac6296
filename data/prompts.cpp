#include "data/prompts.h"

#include "base/error.h"

namespace sinklora {
namespace {

// The default system prompt of LLaMA-2, part of LongLoRA's template for instructions with an input.
constexpr std::string_view kSystem =
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does "
    "not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you "
    "don't "
    "know the answer to a question, please don't share false information.";

}  // namespace

std::string instruction_prompt(std::string_view name, std::string_view instruction, std::string_view input) {
  if (name == "llama2" && input.empty()) return fmt::format("[INST]{}[/INST]", instruction);
  if (name == "llama2")
    return fmt::format("[INST] <<SYS>>\n{}\n<</SYS>> \n\n {} \n{} [/INST]", kSystem, instruction, input);
  if (name == "alpaca" && input.empty())
    return fmt::format(
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{}\n\n### Response:",
        instruction);
  if (name == "alpaca")
    return fmt::format(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a "
        "response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### "
        "Response:",
        instruction, input);
  if (name == "none")
    return input.empty() ? std::string(instruction) : fmt::format("{}\n{}", instruction, input);
  fail_usage("template \"{}\" is unknown; llama2, alpaca and none exist", name);
}

std::vector<PromptPiece> chat_prompt(std::string_view name, const std::vector<ChatMessage>& messages,
                                     const std::string& place) {
  using Kind = PromptPiece::Kind;
  if (name != "llama2") fail_usage("template \"{}\" has no form for chats; choose llama2", name);
  std::vector<PromptPiece> pieces;
  std::string system;
  std::string_view wanted = "user";
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (i == 0 && message.role == "system") {
      system = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n", message.content);
      continue;
    }
    if (message.role != wanted)
      fail_input("{}: message {} is of \"{}\", not of \"{}\"", place, i, message.role, wanted);
    if (wanted == "user") {
      pieces.push_back({Kind::bos, "", false});
      pieces.push_back({Kind::text, fmt::format("[INST] {}{} [/INST]", system, message.content), false});
      system.clear();
      wanted = "assistant";
    } else {
      pieces.push_back({Kind::text, message.content, true});
      pieces.push_back({Kind::eos, "", true});
      wanted = "user";
    }
  }
  return pieces;
}

}  // namespace sinklora
