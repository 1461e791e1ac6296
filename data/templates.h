// How instructions and conversations become prompts.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace sinklora {

// `none` is the bare instruction; `llama2` is LongLoRA's "[INST]{instruction}[/INST]", or, where there is an
// input, its form with LLaMA-2's long system prompt; `alpaca` is Stanford Alpaca's.
enum class InstructionTemplate { none, llama2, alpaca };
InstructionTemplate instruction_template(std::string_view name);  // throws Error(usage)
std::string instruction_prompt(InstructionTemplate form, std::string_view instruction,
                               std::string_view input = "");

struct Message {
  std::string role;  // system, user or assistant
  std::string content;
};

// The formats of Hugging Face's chat templates for LLaMA-2 and LLaMA-3, of ChatML, and of Alpaca, with a turn
// of a conversation as an instruction.
enum class ChatTemplate { llama2, llama3, chatml, alpaca };
// "llama2", "llama3" (or with a dash), "chatml", "alpaca"; throws Error(usage).
ChatTemplate chat_template(std::string_view name);
// Says on stderr when the vocabulary lacks a token that marks turns, which is then spelled out in pieces.
void note_missing_token(ChatTemplate form, const Tokenizer& tokenizer);

// The conversation with `tokenizer`'s own BOS and EOS where the format has them. What people and models wrote
// is never control text, so special tokens in it stay text. Replies and the tokens that end them are
// `scored`. `reply_next`: ends where the next reply begins. Throws Error(input) on roles that the format has
// no place for.
std::vector<Segment> chat_segments(ChatTemplate form, const Tokenizer& tokenizer,
                                   std::span<const Message> messages, bool reply_next);

// The ids of the conversation, with BOS in front where the tokenizer adds one and the format has none itself.
EncodedSegments encode_chat(ChatTemplate form, const Tokenizer& tokenizer, std::span<const Message> messages,
                            bool reply_next);

}  // namespace sinklora
