#include <unistd.h>

#include <algorithm>
#include <memory>

#include "cli/generation_options.h"
#include "cli/inference_options.h"
#include "cli/verbs.h"
#include "data/tokenizer.h"
#include "infer/chat_console.h"
#include "model/expected_directory.h"

namespace sinklora {
namespace {

constexpr int64_t kMostDefaultContext = 4096;  // memory is laid out for all of it

struct ChatCommand {
  InferenceOptions inference;
  GenerationOptions generation{.max_new_tokens = 1024};
  std::filesystem::path tokenizer;
  std::string form = "auto", system;
};

ChatTemplate template_of(const ChatCommand& c, const Tokenizer& tokenizer) {
  if (c.form != "auto") return chat_template(c.form);
  if (const auto form = detect_chat_template(c.inference.model, tokenizer)) return *form;
  fail_usage(
      "{}: neither its files nor its vocabulary tell the chat template; give --template llama2, llama3, "
      "chatml or alpaca, as the model was tuned",
      c.inference.model.string());
}

void run(ChatCommand& c) {
  ChatOptions options{
      .system = c.system, .sampling = sampling_options(c.generation), .stops = c.generation.stops};
  expect_model_directory(c.inference.model);  // before its tokenizer is missed
  const auto tokenizer = open_tokenizer(c.tokenizer.empty() ? c.inference.model : c.tokenizer);
  print_notes(*tokenizer);
  options.form = template_of(c, *tokenizer);
  note_missing_token(options.form, *tokenizer);
  if (c.inference.context == 0) {
    auto reach = static_cast<int64_t>(reach_of(read_config(c.inference.model)));
    if (!c.inference.adapter.empty()) reach = std::max(reach, read_run_info(c.inference.adapter).context);
    c.inference.context = std::min(reach, kMostDefaultContext);
  }
  const KvCachePolicy policy = make_cache_policy(c.generation.cache, c.inference.context);
  c.inference.chunk = kPromptChunk;
  c.inference.notes = true;
  const LoadedModel loaded = load_for_inference(c.inference);
  options.generate = {c.generation.max_new_tokens,
                      end_of_text_ids(loaded.llama->config(), *tokenizer, c.inference.model),
                      InterruptGuard::flag()};
  CachedSession session(*loaded.llama, policy);
  Chat chat(session, *tokenizer, options);
  const InterruptGuard guard;
  run_chat(chat, STDIN_FILENO, stdout, stderr);
}

}  // namespace

void add_chat(CLI::App& app) {
  auto* verb = app.add_subcommand("chat", "talk with a model; a line is a message, /help lists the commands");
  const auto command = std::make_shared<ChatCommand>();
  add_inference_options(*verb, command->inference);
  add_tokenizer(*verb, command->tokenizer);
  add_choice(*verb, "--template", command->form, "auto: as the model's files tell",
             {"auto", "llama2", "llama3", "chatml", "alpaca"});
  verb->add_option("--system", command->system,
                   "system message; without this there is none, also where the model's own template has one")
      ->type_name("TEXT");
  add_count(*verb, "--context", command->inference.context,
            "longest conversation in tokens; 0: the model's, at most 4096", 0, int64_t{1} << 30);
  add_generation_options(*verb, command->generation);
  verb->footer(
      "Examples:\n"
      "  sinklora chat --model smollm2-instruct --temperature 0.7 --top-p 0.9\n"
      "  sinklora chat --model llama --adapter run --template alpaca --context 32k\n"
      "  sinklora chat --model smollm2-instruct --system \"Be brief.\" < questions.txt");
  verb->callback([command] {
    resolve_precision(command->inference);
    run(*command);
  });
}

}  // namespace sinklora
