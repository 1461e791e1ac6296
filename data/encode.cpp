#include "data/encode.h"

#include <algorithm>

#include "base/error.h"
#include "base/json_fields.h"
#include "data/templates.h"

namespace sinklora {
namespace {

// A string of a record; null and, where it is optional, a missing key are the empty string.
std::string text_of(const JsonFields& record, const char* key, bool optional = false) {
  return record.given(key) || !(optional || record.has(key)) ? record.text(key) : "";
}

// What a message says: a text, or a list of parts, whose texts are joined as Hugging Face's templates do.
std::string content_of(const JsonFields& message, const char* key) {
  for (const char* call : {"tool_calls", "function_call"})
    if (message.given(call) && !message.json().at(call).empty())
      fail_input("{}: {} is given, and no template here writes such calls; leave such records out",
                 message.source(), call);
  if (message.has(key) && !message.given(key))
    fail_input("{}: {} is null (a tool call?); leave such records out", message.source(), key);
  if (!message.has(key) || !message.json().at(key).is_array()) return message.text(key);
  std::string text;
  for (const Json& json : message.list(key)) {
    const JsonFields part(json, fmt::format("{}: {}", message.source(), key));
    if (const std::string type = part.text("type"); type != "text")
      fail_input("{} has a part of type {}, and only text is read; leave such records out", part.source(),
                 shown(Json(type)));
    text += part.text("text");
  }
  return text;
}

// Messages as OpenAI and Hugging Face write them, or as ShareGPT does, each with the names of either.
std::vector<Message> messages_of(const JsonFields& record) {
  const char* list = !record.given("messages") && record.has("conversations") ? "conversations" : "messages";
  std::vector<Message> messages;
  for (const Json& json : record.list(list)) {
    const JsonFields message(json, fmt::format("{}: {}", record.source(), list));
    if (message.given("from") && !message.given("content")) {
      const std::string role = message.text("from");
      messages.push_back({role == "human" ? "user"
                          : role == "gpt" ? "assistant"
                                          : role,
                          content_of(message, "value")});
    } else {
      messages.push_back({message.text("role"), content_of(message, "content")});
    }
  }
  return messages;
}

}  // namespace

DocumentEncoder::DocumentEncoder(const Tokenizer& tokenizer, EncodeOptions options)
    : tokenizer_(tokenizer), options_(std::move(options)) {}

void DocumentEncoder::add_token(EncodedDocument& document, int32_t id, bool scored) const {
  if (id < 0) return;  // this tokenizer has no such token
  document.ids.push_back(id);
  document.scored.push_back(scored);
}

void DocumentEncoder::add_text(EncodedDocument& document, std::string_view text, bool scored) const {
  const std::vector<int32_t> ids = tokenizer_.encode(text);
  document.ids.insert(document.ids.end(), ids.begin(), ids.end());
  document.scored.resize(document.ids.size(), scored);
}

void DocumentEncoder::encode_instruction(const JsonFields& record, EncodedDocument& document) const {
  const std::string prompt =
      instruction_prompt(instruction_template(options_.template_name), text_of(record, "instruction"),
                         text_of(record, "input", true));
  const std::string answer = text_of(record, "output");
  document.empty_reply = answer.empty();
  if (tokenizer_.add_bos) add_token(document, tokenizer_.bos_id, false);
  const size_t start = document.ids.size();
  if (options_.longlora_seam) {
    add_text(document, prompt + answer, true);
    const size_t seam = std::min(start + tokenizer_.encode(prompt).size(), document.ids.size());
    std::fill(document.scored.begin(), document.scored.begin() + static_cast<std::ptrdiff_t>(seam), 0);
  } else {
    const Segment parts[] = {{prompt, false, false}, {answer, false, true}};
    const EncodedSegments encoded = tokenizer_.encode_segments(parts);
    document.ids.insert(document.ids.end(), encoded.ids.begin(), encoded.ids.end());
    document.scored.insert(document.scored.end(), encoded.scored.begin(), encoded.scored.end());
  }
  add_token(document, tokenizer_.eos_id, true);
}

void DocumentEncoder::encode_chat(const JsonFields& record, EncodedDocument& document) const {
  const std::vector<Message> messages = messages_of(record);
  document.empty_reply = std::ranges::any_of(messages, [](const Message& message) {
    return message.role == "assistant" && message.content.empty();
  });
  try {
    EncodedSegments chat =
        sinklora::encode_chat(chat_template(options_.template_name), tokenizer_, messages, false);
    document.ids = std::move(chat.ids);
    document.scored = std::move(chat.scored);
  } catch (const Error& error) {
    fail(error.code, "{}: {}", record.source(), error.what());
  }
}

EncodedDocument DocumentEncoder::encode(const Record& record) const {
  EncodedDocument document;
  const Json json = record.is_json ? parse_json(record.bytes, record.place) : Json::object();
  const JsonFields fields(json, record.place);
  if (options_.format == "text") {
    const std::string text = record.is_json ? text_of(fields, "text") : record.bytes;
    if (text.empty()) return {{}, {}, false, true};
    if (tokenizer_.add_bos) add_token(document, tokenizer_.bos_id, true);
    add_text(document, text, true);
    add_token(document, tokenizer_.eos_id, true);
  } else if (options_.format == "alpaca") {
    encode_instruction(fields, document);
  } else {
    encode_chat(fields, document);
  }

  return fit(std::move(document));
}

EncodedDocument DocumentEncoder::fit(EncodedDocument document) const {
  const auto context = static_cast<size_t>(options_.context);
  const bool too_long = options_.format != "text" && document.ids.size() > context;
  if (too_long) {
    document.ids.resize(context);
    document.scored.resize(context);
  }
  // The first token is predicted from nothing: it is never scored.
  const bool scored = !document.ids.empty() && std::find(document.scored.begin() + 1, document.scored.end(),
                                                         1) != document.scored.end();
  if (!scored || (too_long && options_.drop_too_long)) return {{}, {}, false, true, too_long && !scored};
  document.truncated = too_long;
  return document;
}

}  // namespace sinklora
