#include "infer/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/json.h"

namespace sinklora {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// A model may have more rows than its tokenizer has ids, to make a round number of them: they have no text.
void remove_padding(std::vector<float>& logits, int64_t vocab_size, const std::vector<int32_t>& eos_ids) {
  for (auto id = static_cast<size_t>(vocab_size); id < logits.size(); ++id)
    if (!contains(eos_ids, static_cast<int32_t>(id))) logits[id] = -INFINITY;
}

}  // namespace

std::string_view describe(ReplyEnd end) {
  switch (end) {
    case ReplyEnd::eos:
      return "eos";
    case ReplyEnd::stop_string:
      return "stop string";
    case ReplyEnd::max_new_tokens:
      return "max new tokens";
    case ReplyEnd::context_full:
      return "context full";
    case ReplyEnd::interrupted:
      return "interrupted";
  }
  fail_internal("unknown end of a reply");
}

double Reply::decode_tokens_per_s() const {
  // The token that ended the reply was computed as well.
  const auto steps = static_cast<int64_t>(ids.size()) - (end == ReplyEnd::eos ? 0 : 1);
  return steps > 0 && decode_seconds > 0 ? static_cast<double>(steps) / decode_seconds : 0;
}

Reply generate(Session& session, std::span<const int32_t> prompt, Sampler& sampler, TextStream& stream,
               const GenerateOptions& options, const std::function<void(std::string_view)>& on_text) {
  if (prompt.empty()) fail_usage("the prompt is empty; give at least one token to continue");
  if (options.max_new_tokens < 1) fail_usage("--max-new-tokens {}: give at least 1", options.max_new_tokens);
  Reply reply;
  const auto add = [&](const std::string& text) {
    if (text.empty()) return;
    reply.text += text;
    on_text(text);
  };
  reply.prompt_tokens = static_cast<int64_t>(prompt.size());
  sampler.see(prompt);
  stream.reset();
  auto begin = std::chrono::steady_clock::now();
  std::vector<float> logits = session.extend(prompt);
  reply.prefill_seconds = seconds_since(begin);
  begin = std::chrono::steady_clock::now();
  while (true) {
    if (options.interrupt && *options.interrupt != 0) {
      reply.end = ReplyEnd::interrupted;
      break;
    }
    remove_padding(logits, stream.vocab_size(), options.eos_ids);
    const int32_t id = sampler.next(logits);
    if (contains(options.eos_ids, id)) {
      reply.end = ReplyEnd::eos;
      break;
    }
    reply.ids.push_back(id);
    add(stream.push(id));
    if (stream.stopped()) break;
    reply.end = ReplyEnd::max_new_tokens;
    if (static_cast<int64_t>(reply.ids.size()) >= options.max_new_tokens) break;
    reply.end = ReplyEnd::context_full;
    if (session.length() + 1 >= session.context()) break;
    logits = session.extend(std::span(&id, 1));
  }
  reply.decode_seconds = seconds_since(begin);
  add(stream.finish());
  if (stream.stopped()) reply.end = ReplyEnd::stop_string;
  return reply;
}

std::vector<int32_t> end_of_text_ids(const LlamaConfig& config, const Tokenizer& tokenizer,
                                     const std::filesystem::path& model) {
  std::vector<int32_t> ids = config.eos_ids;
  if (tokenizer.eos_id >= 0 && !contains(ids, tokenizer.eos_id)) ids.push_back(tokenizer.eos_id);
  const std::filesystem::path path = model / "generation_config.json";
  if (!std::filesystem::exists(path)) return ids;
  const Json json = read_json(path);
  const auto eos = json.find("eos_token_id");
  if (!json.is_object() || eos == json.end() || eos->is_null()) return ids;
  for (const Json& id : eos->is_array() ? *eos : Json::array({*eos})) {
    if (!id.is_number_integer())
      fail_input("{}: eos_token_id has {}, wanted ids below the vocabulary's {}", path.string(), id.dump(),
                 config.vocab_size);
    if (id < 0 || id >= config.vocab_size) {
      fmt::print(
          stderr,
          "{}: note: eos_token_id has {}, which is no id below the vocabulary's {}, and has no effect\n",
          path.string(), id.dump(), config.vocab_size);
      continue;
    }
    if (!contains(ids, id.get<int32_t>())) ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace sinklora
