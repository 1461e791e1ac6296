#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "base/files.h"
#include "cli/inference_options.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "data/tokenizer.h"
#include "infer/generate.h"

namespace sinklora {
namespace {

constexpr int64_t kMostPromptBytes = int64_t{1} << 30;

struct GenerateCommand {
  InferenceOptions inference;
  GenerateOptions generate;
  std::string prompt, json;
  std::filesystem::path prompt_file, tokenizer, logits;
  int64_t seed = 0;
};

// Bytes at the end of `text` that begin a UTF-8 character which is not complete yet.
size_t unfinished_bytes(const std::string& text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xc0u) == 0x80u) continue;  // a continuation
    const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}

// The logits after every token of the prompt, to compare with other programs.
void write_logits(const GenerateCommand& c, Llama& model, const std::vector<int32_t>& ids) {
  const auto tokens = static_cast<int64_t>(ids.size());
  const Batch batch = make_batch({{ids, std::vector<int32_t>(ids.size(), kNotScored), {0}}}, {0});
  const std::vector<float> logits = model.logits(batch, AttentionPattern{}, 0, tokens);
  const auto ids_bytes = std::as_bytes(std::span(ids)), bytes = std::as_bytes(std::span(logits));
  write_safetensors(
      c.logits, {{"ids", DType::i32, {tokens}, {ids_bytes.begin(), ids_bytes.end()}},
                 {"logits", DType::f32, {tokens, model.config().vocab_size}, {bytes.begin(), bytes.end()}}});
}

void run(GenerateCommand& c) {
  const auto tokenizer = open_tokenizer(c.tokenizer.empty() ? c.inference.model : c.tokenizer);
  const std::string prompt = c.prompt_file.empty() ? c.prompt : read_text(c.prompt_file, kMostPromptBytes);
  std::vector<int32_t> ids = tokenizer->encode(prompt);
  if (tokenizer->add_bos) ids.insert(ids.begin(), tokenizer->bos_id);
  const auto prompt_tokens = static_cast<int64_t>(ids.size());
  if (c.inference.context == 0) c.inference.context = prompt_tokens + c.generate.max_new_tokens;
  if (prompt_tokens >= c.inference.context)
    fail_usage("the prompt has {} tokens and --context is {}; give a longer context or a shorter prompt",
               prompt_tokens, c.inference.context);
  const LoadedModel loaded = load_for_inference(c.inference);
  c.generate.stop_ids = loaded.llama->config().eos_ids;
  c.generate.seed = static_cast<uint64_t>(c.seed);

  if (!c.logits.empty()) write_logits(c, *loaded.llama, ids);

  std::vector<int32_t> reply;
  size_t printed = 0;
  const auto begin = std::chrono::steady_clock::now();
  generate(*loaded.llama, ids, c.inference.context, c.generate, [&](int32_t id) {
    reply.push_back(id);
    if (c.json == "-") return;
    const std::string text = tokenizer->decode(reply);
    const size_t end = text.size() - unfinished_bytes(text);
    if (end > printed) fmt::print("{}", std::string_view(text).substr(printed, end - printed));
    printed = std::max(printed, end);
    std::fflush(stdout);
  });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (c.json != "-") fmt::print("\n");
  write_result(c.json, {{"prompt_tokens", prompt_tokens},
                        {"new_tokens", reply.size()},
                        {"seconds", seconds},
                        {"tokens_per_s", static_cast<double>(reply.size()) / seconds},
                        {"ids", reply},
                        {"text", tokenizer->decode(reply)}});
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* verb = app.add_subcommand("generate", "continue a prompt, streaming the text");
  const auto command = std::make_shared<GenerateCommand>();
  add_inference_options(*verb, command->inference);
  verb->add_option("--tokenizer", command->tokenizer, "where the tokenizer is, if not in --model")
      ->type_name("PATH");
  auto* prompt = verb->add_option("--prompt", command->prompt, "text to continue")->type_name("TEXT");
  verb->add_option("--prompt-file", command->prompt_file, "file with the text to continue")
      ->type_name("FILE")
      ->excludes(prompt);
  add_count(*verb, "--context", command->inference.context, "longest text in tokens; 0: prompt and reply", 0,
            int64_t{1} << 30);
  add_count(*verb, "--max-new-tokens", command->generate.max_new_tokens, "longest reply", 1);
  add_number(*verb, "--temperature", command->generate.temperature, "0: always the likeliest token", 0, 100);
  add_count(*verb, "--seed", command->seed, "of the sampling");
  verb->add_option("--json", command->json, "write reply and timing as JSON to FILE, - for standard output")
      ->type_name("FILE");
  verb->add_option("--logits", command->logits,
                   "write the prompt's ids and the logits after each as safetensors to FILE")
      ->type_name("FILE");
  verb->footer("Example:\n  sinklora generate --model smollm2 --prompt \"The sea was\" --max-new-tokens 50");
  verb->callback([command] { run(*command); });
}

}  // namespace sinklora
