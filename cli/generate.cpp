#include <fmt/format.h>

#include <memory>

#include "base/files.h"
#include "cli/generation_options.h"
#include "cli/inference_options.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "data/tokenizer.h"
#include "model/expected_directory.h"

namespace sinklora {
namespace {

constexpr int64_t kMostPromptBytes = int64_t{1} << 30;

struct GenerateCommand {
  InferenceOptions inference;
  GenerationOptions generation;
  std::string prompt, json;
  std::filesystem::path prompt_file, tokenizer, logits;
};

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
  Sampler sampler(sampling_options(c.generation));
  expect_model_directory(c.inference.model);  // before its tokenizer is missed
  const auto tokenizer = open_tokenizer(c.tokenizer.empty() ? c.inference.model : c.tokenizer);
  print_notes(*tokenizer);
  TextStream stream(*tokenizer, c.generation.stops);
  const std::string prompt = c.prompt_file.empty() ? c.prompt : read_text(c.prompt_file, kMostPromptBytes);
  const std::vector<int32_t> ids = tokenizer->encode_prompt(prompt);
  const auto prompt_tokens = static_cast<int64_t>(ids.size());
  if (c.inference.context == 0) c.inference.context = prompt_tokens + c.generation.max_new_tokens;
  if (prompt_tokens >= c.inference.context)
    fail_usage("the prompt has {} tokens and --context is {}; give a longer context or a shorter prompt",
               prompt_tokens, c.inference.context);
  const KvCachePolicy policy = make_cache_policy(c.generation.cache, c.inference.context);
  if (c.logits.empty()) c.inference.chunk = kPromptChunk;  // else one pass gives the logits of all tokens
  c.inference.notes = true;
  const LoadedModel loaded = load_for_inference(c.inference);
  if (!c.logits.empty()) write_logits(c, *loaded.llama, ids);

  CachedSession session(*loaded.llama, policy);
  const GenerateOptions options{c.generation.max_new_tokens,
                                end_of_text_ids(loaded.llama->config(), *tokenizer, c.inference.model)};
  const Reply reply = generate(session, ids, sampler, stream, options, [&](std::string_view text) {
    if (c.json == "-") return;
    fmt::print("{}", text);
    std::fflush(stdout);
  });
  if (c.json != "-") fmt::print("\n");
  const double seconds = reply.prefill_seconds + reply.decode_seconds;
  Json record{{"prompt_tokens", prompt_tokens},
              {"new_tokens", reply.ids.size()},
              {"seconds", seconds},
              {"tokens_per_s", static_cast<double>(reply.ids.size()) / seconds},
              {"prefill_seconds", reply.prefill_seconds},
              {"decode_tokens_per_s", reply.decode_tokens_per_s()},
              {"ended_by", describe(reply.end)},
              {"context", c.inference.context},
              {"rope_scaling", describe(loaded.llama->config().rope)},
              {"cache_bytes", session.cache_bytes()},
              {"ids", reply.ids},
              {"text", reply.text}};
  add_cache(record, c.generation.cache, c.inference.context);
  add_origin(record, c.inference);
  write_result(c.json, record);
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* verb = app.add_subcommand("generate", "continue a prompt, streaming the text");
  const auto command = std::make_shared<GenerateCommand>();
  add_inference_options(*verb, command->inference);
  add_tokenizer(*verb, command->tokenizer);
  auto* prompt = verb->add_option("--prompt", command->prompt,
                                  "text to continue; names of special tokens in it stay text")
                     ->type_name("TEXT");
  verb->add_option("--prompt-file", command->prompt_file, "file with the text to continue, as for --prompt")
      ->type_name("FILE")
      ->excludes(prompt);
  add_count(*verb, "--context", command->inference.context, "longest text in tokens; 0: prompt and reply", 0,
            int64_t{1} << 30);
  add_generation_options(*verb, command->generation);
  add_json(*verb, command->json, "reply and timing");
  verb->add_option("--logits", command->logits,
                   "write the prompt's ids and the logits after each as safetensors to FILE")
      ->type_name("FILE");
  verb->footer(
      "Examples:\n"
      "  sinklora generate --model smollm2 --prompt \"The sea was\" --max-new-tokens 50\n"
      "  sinklora generate --model smollm2 --prompt-file chapter.txt --temperature 0.8 --top-p 0.9\n"
      "  sinklora generate --model smollm2 --prompt \"Q: Why?\" --stop \"Q:\" --json reply.json");
  verb->callback([command] {
    resolve_precision(command->inference);
    run(*command);
  });
}

}  // namespace sinklora
