#include "infer/chat.h"

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"

namespace sinklora {
namespace {

constexpr int64_t kMostTemplateBytes = 10'000'000;

// What ends a turn: a control token where the vocabulary has it; else the model can only spell it.
std::string end_of_turn(ChatTemplate form) {
  switch (form) {
    case ChatTemplate::llama2:
      return "";  // EOS
    case ChatTemplate::llama3:
      return "<|eot_id|>";
    case ChatTemplate::chatml:
      return "<|im_end|>";
    case ChatTemplate::alpaca:
      return "\n\n### Instruction:";  // of models that have not learned to end
  }
  fail_internal("unknown chat template");
}

ChatOptions with_end_of_turn(ChatOptions options, const Tokenizer& tokenizer) {
  std::vector<int32_t>& eos = options.generate.eos_ids;
  if (tokenizer.eos_id >= 0) eos.push_back(tokenizer.eos_id);
  if (const std::string end = end_of_turn(options.form); !end.empty()) {
    if (const int32_t id = tokenizer.id_of(end); id >= 0)
      eos.push_back(id);
    else
      options.stops.push_back(end);
  }
  return options;
}

// The Jinja texts of a model directory, one after another.
std::string template_texts(const std::filesystem::path& model) {
  std::string texts;
  if (const auto path = model / "chat_template.jinja"; std::filesystem::exists(path))
    texts += read_text(path, kMostTemplateBytes);
  const auto path = model / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return texts;
  const Json json = read_json(path);
  if (json.is_object() && json.contains("chat_template")) texts += json["chat_template"].dump();
  return texts;
}

}  // namespace

Chat::Chat(Session& session, const Tokenizer& tokenizer, ChatOptions options)
    : session_(session),
      tokenizer_(tokenizer),
      options_(with_end_of_turn(std::move(options), tokenizer)),
      sampler_(options_.sampling),
      stream_(tokenizer, options_.stops) {
  reset();
}

void Chat::reset() {
  messages_.clear();
  if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  session_.reset();
  held_.clear();
  sampler_.reset();
}

// The session goes on from what it holds, unless the conversation as a whole is cut into other tokens than
// its parts were when the model wrote them.
std::vector<int32_t> Chat::take_what_is_new(std::vector<int32_t> ids) {
  const bool goes_on = held_.size() < ids.size() && std::equal(held_.begin(), held_.end(), ids.begin());
  if (!goes_on) {
    session_.reset();
    held_.clear();
  }
  std::vector<int32_t> added(ids.begin() + static_cast<int64_t>(held_.size()), ids.end());
  held_ = std::move(ids);
  return added;
}

Reply Chat::say(const std::string& message, const std::function<void(std::string_view)>& on_text) {
  messages_.push_back({"user", message});
  try {
    std::vector<int32_t> ids = encode_chat(options_.form, tokenizer_, messages_, true).ids;
    if (static_cast<int64_t>(ids.size()) >= session_.context())
      fail_input(
          "with this message the conversation has {} tokens, and the context is {}: /reset it, shorten the "
          "message, or begin with a longer --context",
          ids.size(), session_.context());
    const std::vector<int32_t> added = take_what_is_new(std::move(ids));
    Reply reply = generate(session_, added, sampler_, stream_, options_.generate, on_text);
    held_.insert(held_.end(), reply.ids.begin(), reply.ids.end());
    held_.resize(static_cast<size_t>(session_.length()));  // it never sees the token that ends a reply
    messages_.push_back({"assistant", reply.text});
    return reply;
  } catch (...) {
    messages_.pop_back();
    session_.reset();  // it may hold a part of the message
    held_.clear();
    throw;
  }
}

std::string Chat::to_json() const {
  Json list = Json::array();
  for (const auto& [role, content] : messages_) list.push_back({{"role", role}, {"content", content}});
  return dump_json(Json{{"messages", list}}) + "\n";
}

std::optional<ChatTemplate> detect_chat_template(const std::filesystem::path& model,
                                                 const Tokenizer& tokenizer) {
  const std::string texts = template_texts(model);
  const auto says = [&](std::string_view mark) { return texts.find(mark) != std::string::npos; };
  if (says("<|im_start|>")) return ChatTemplate::chatml;
  if (says("<|start_header_id|>")) return ChatTemplate::llama3;
  if (says("[INST]")) return ChatTemplate::llama2;
  if (says("### Instruction:")) return ChatTemplate::alpaca;
  if (!texts.empty()) return std::nullopt;  // a format of its own
  if (tokenizer.id_of("<|im_start|>") >= 0) return ChatTemplate::chatml;
  if (tokenizer.id_of("<|start_header_id|>") >= 0) return ChatTemplate::llama3;
  return std::nullopt;
}

}  // namespace sinklora
