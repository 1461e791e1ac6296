#include "data/templates.h"

#include "base/error.h"
#include "base/json_fields.h"
#include "data/utf8.h"

namespace sinklora {
namespace {

constexpr std::string_view kLlama2System =
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something "
    "not correct. If you don't know the answer to a question, please don't share false information.";
constexpr std::string_view kAlpacaSystem =
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.";
constexpr std::string_view kAlpacaSystemWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.";

// What Python's str.strip() leaves, which the templates call: the separators U+001C to U+001F are white space there.
std::string_view trimmed(std::string_view text) {
  const auto separator = [&](size_t at) { return text[at] >= '\x1c' && text[at] <= '\x1f'; };
  size_t begin = white_space_end(text, 0), end = text.size();
  while (begin < end && separator(begin)) begin = white_space_end(text, begin + 1);
  end = white_space_begin(text, end, begin);
  while (begin < end && separator(end - 1)) end = white_space_begin(text, end - 1, begin);
  return text.substr(begin, end - begin);
}

// Gathers segments; neighbours of the same kind become one.
class Prompt {
 public:
  void control(std::string_view text) { add(text, true, false); }
  void text(std::string_view text) { add(text, false, false); }
  void reply(std::string_view text) { add(text, false, true); }
  void reply_end(std::string_view text) { add(text, true, true); }
  std::vector<Segment> take() { return std::move(segments_); }

 private:
  void add(std::string_view text, bool control, bool scored) {
    if (text.empty()) return;
    if (segments_.empty() || segments_.back().control != control || segments_.back().scored != scored)
      segments_.push_back({"", control, scored});
    segments_.back().text += text;
  }
  std::vector<Segment> segments_;
};

std::string token_name(const Tokenizer& tokenizer, int32_t id) { return id < 0 ? "" : tokenizer.piece(id); }

void llama3(Prompt& prompt, const Tokenizer& tokenizer, std::span<const Message> messages, bool reply_next) {
  prompt.control(token_name(tokenizer, tokenizer.bos_id));
  const auto header = [&](const std::string& role) {
    prompt.control("<|start_header_id|>" + role + "<|end_header_id|>\n\n");
  };
  for (const auto& [role, content] : messages) {
    header(role);
    if (role == "assistant") {
      prompt.reply(trimmed(content));
      prompt.reply_end("<|eot_id|>");
    } else {
      prompt.text(trimmed(content));
      prompt.control("<|eot_id|>");
    }
  }
  if (reply_next) header("assistant");
}

void chatml(Prompt& prompt, std::span<const Message> messages, bool reply_next) {
  for (const auto& [role, content] : messages) {
    prompt.control("<|im_start|>" + role + "\n");
    if (role == "assistant") {
      prompt.reply(content);
      prompt.reply_end("<|im_end|>");
    } else {
      prompt.text(content);
      prompt.control("<|im_end|>");
    }
    prompt.control("\n");
  }
  if (reply_next) prompt.control("<|im_start|>assistant\n");
}

// LLaMA-2 and Alpaca: the system message, if any, then user and assistant in turn.
void check_turns(std::span<const Message> turns, std::string_view name) {
  for (size_t i = 0; i < turns.size(); ++i)
    if (const std::string_view wanted = i % 2 == 0 ? "user" : "assistant"; turns[i].role != wanted)
      fail_input(
          "chat template {}: turn {} is the {}'s, but user and assistant must take turns, the user first; "
          "leave such conversations out",
          name, i + 1, turns[i].role);
}

void llama2(Prompt& prompt, const Tokenizer& tokenizer, std::span<const Message> turns,
            const Message* system) {
  for (size_t i = 0; i < turns.size(); ++i) {
    if (i % 2 == 0) {
      const bool with_system = system && i == 0;
      const std::string before = with_system ? "<<SYS>>\n" + system->content + "\n<</SYS>>\n\n" : "";
      prompt.control(token_name(tokenizer, tokenizer.bos_id));
      prompt.text(fmt::format("[INST] {} [/INST]", trimmed(before + turns[i].content)));
    } else {
      prompt.reply(fmt::format(" {} ", trimmed(turns[i].content)));
      prompt.reply_end(token_name(tokenizer, tokenizer.eos_id));
    }
  }
}

void alpaca(Prompt& prompt, const Tokenizer& tokenizer, std::span<const Message> turns,
            const Message* system) {
  prompt.text(system ? system->content : kAlpacaSystem);
  for (size_t i = 0; i < turns.size(); ++i) {
    if (i % 2 == 0) {
      prompt.text("\n\n### Instruction:\n" + turns[i].content + "\n\n### Response:");
    } else {
      prompt.reply(turns[i].content);
      prompt.reply_end(token_name(tokenizer, tokenizer.eos_id));
    }
  }
}

}  // namespace

InstructionTemplate instruction_template(std::string_view name) {
  if (name == "none") return InstructionTemplate::none;
  if (name == "llama2") return InstructionTemplate::llama2;
  if (name == "alpaca") return InstructionTemplate::alpaca;
  fail_usage("no instruction template is called \"{}\"; there are llama2, alpaca and none", name);
}

std::string instruction_prompt(InstructionTemplate form, std::string_view instruction,
                               std::string_view input) {
  switch (form) {
    case InstructionTemplate::none:
      return input.empty() ? std::string(instruction) : fmt::format("{}\n{}", instruction, input);
    case InstructionTemplate::llama2:
      if (input.empty()) return fmt::format("[INST]{}[/INST]", instruction);
      return fmt::format("[INST] <<SYS>>\n{}\n<</SYS>> \n\n {} \n{} [/INST]", kLlama2System, instruction,
                         input);
    case InstructionTemplate::alpaca:
      if (input.empty())
        return fmt::format("{}\n\n### Instruction:\n{}\n\n### Response:", kAlpacaSystem, instruction);
      return fmt::format("{}\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:",
                         kAlpacaSystemWithInput, instruction, input);
  }
  fail_internal("unknown instruction template");
}

ChatTemplate chat_template(std::string_view name) {
  if (name == "llama2" || name == "llama-2") return ChatTemplate::llama2;
  if (name == "llama3" || name == "llama-3") return ChatTemplate::llama3;
  if (name == "chatml") return ChatTemplate::chatml;
  if (name == "alpaca") return ChatTemplate::alpaca;
  fail_usage("no chat template is called \"{}\"; there are llama2, llama3, chatml and alpaca", name);
}

void note_missing_token(ChatTemplate form, const Tokenizer& tokenizer) {
  std::vector<std::string_view> needed;
  if (form == ChatTemplate::llama3) needed = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
  if (form == ChatTemplate::chatml) needed = {"<|im_start|>", "<|im_end|>"};
  for (const std::string_view token : needed)
    if (tokenizer.id_of(token) < 0)
      return fmt::print(
          stderr,
          "note: the vocabulary has no {}: the template spells it out as text, which only a model "
          "tuned so understands\n",
          token);
}

std::vector<Segment> chat_segments(ChatTemplate form, const Tokenizer& tokenizer,
                                   std::span<const Message> messages, bool reply_next) {
  if (messages.empty()) fail_input("a conversation without messages has no prompt");
  for (const Message& message : messages)
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      fail_input("a conversation's role is {}; there are system, user and assistant; leave such ones out",
                 shown(Json(message.role)));
  if (reply_next && messages.back().role == "assistant")
    fail_input("the conversation ends with the assistant's message, so no reply is due");
  Prompt prompt;
  if (form == ChatTemplate::llama3) {
    llama3(prompt, tokenizer, messages, reply_next);
  } else if (form == ChatTemplate::chatml) {
    chatml(prompt, messages, reply_next);
  } else {
    const Message* system = messages.front().role == "system" ? &messages.front() : nullptr;
    const auto turns = messages.subspan(system ? 1 : 0);
    const bool is_llama2 = form == ChatTemplate::llama2;
    check_turns(turns, is_llama2 ? "llama-2" : "alpaca");
    if (is_llama2)
      llama2(prompt, tokenizer, turns, system);
    else
      alpaca(prompt, tokenizer, turns, system);
  }
  return prompt.take();
}

EncodedSegments encode_chat(ChatTemplate form, const Tokenizer& tokenizer, std::span<const Message> messages,
                            bool reply_next) {
  EncodedSegments encoded = tokenizer.encode_segments(chat_segments(form, tokenizer, messages, reply_next));
  if (tokenizer.add_bos && (encoded.ids.empty() || encoded.ids.front() != tokenizer.bos_id)) {
    encoded.ids.insert(encoded.ids.begin(), tokenizer.bos_id);
    encoded.scored.insert(encoded.scored.begin(), 0);
  }
  return encoded;
}

}  // namespace sinklora
