#include <fmt/format.h>

#include <memory>

#include "cli/cache_options.h"
#include "cli/inference_options.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "eval/passkey.h"

namespace sinklora {
namespace {

struct PasskeyCommand {
  InferenceOptions inference;
  PasskeyOptions passkey;
  CacheOptions cache;
  std::filesystem::path tokenizer, plot;
  std::string json;
};

Json to_json(const PasskeyCommand& c, std::span<const PasskeyCell> cells) {
  Json list = Json::array();
  int64_t trials = 0, correct = 0;
  for (const PasskeyCell& cell : cells) {
    list.push_back({{"wanted_tokens", cell.wanted_tokens},
                    {"tokens", cell.tokens},
                    {"depth", cell.depth ? Json(*cell.depth) : Json(nullptr)},
                    {"trials", cell.trials},
                    {"correct", cell.correct},
                    {"accuracy", cell.accuracy()}});
    trials += cell.trials;
    correct += cell.correct;
  }
  return {{"protocol", "passkey"},
          {"context", c.inference.context},
          {"trials", trials},
          {"accuracy", static_cast<double>(correct) / static_cast<double>(trials)},
          {"cells", list},
          {"cache", c.cache.kind},
          {"precision", c.inference.precision},
          {"device", c.inference.device},
          {"model", c.inference.model.string()},
          {"adapter", c.inference.adapter.empty() ? Json(nullptr) : Json(c.inference.adapter.string())}};
}

void run(PasskeyCommand& c) {
  if (c.passkey.interval > c.passkey.max_tokens)
    fail_usage("--interval {} is longer than --max-tokens {}", c.passkey.interval, c.passkey.max_tokens);
  passkey_prompt(passkey_filler(c.passkey.interval), 0, {});  // refuses what has no filler
  const auto tokenizer = open_tokenizer(c.tokenizer.empty() ? c.inference.model : c.tokenizer);
  const int64_t longest = passkey_context(*tokenizer, c.passkey);
  if (c.inference.context == 0) c.inference.context = longest;
  if (c.inference.context < longest)
    fail_usage(
        "--context {}: the longest prompt and its answer have {} tokens; give that or a smaller --max-tokens",
        c.inference.context, longest);
  const KvCachePolicy policy = make_cache_policy(c.cache, c.inference.context);
  c.inference.chunk = kPromptChunk;
  const LoadedModel loaded = load_for_inference(c.inference);
  CachedSession session(*loaded.llama, policy);
  const auto cells = passkey_retrieval(session, *tokenizer, c.passkey, c.json != "-");
  if (!c.plot.empty()) write_heat_map(c.plot, "Passkey retrieval, % of the keys found", cells);
  if (write_result(c.json, to_json(c, cells))) return;
  for (const PasskeyCell& cell : cells)
    fmt::print("{:>7} tokens ({:.0f})  depth {:>6}  {}/{}\n", cell.wanted_tokens, cell.tokens,
               cell.depth ? fmt::format("{:.2f}", *cell.depth) : "random", cell.correct, cell.trials);
}

}  // namespace

void add_eval_passkey(CLI::App& eval) {
  auto* verb =
      eval.add_subcommand("passkey", "find a number in a long irrelevant text, as LongLoRA tests it");
  const auto command = std::make_shared<PasskeyCommand>();
  add_inference_options(*verb, command->inference);
  verb->add_option("--tokenizer", command->tokenizer, "where the tokenizer is, if not in --model")
      ->type_name("PATH");
  auto* group = verb->add_option_group("Measurement");
  add_count(*group, "--max-tokens", command->passkey.max_tokens, "longest prompt, roughly", 1, 1'000'000);
  add_count(*group, "--interval", command->passkey.interval, "between the lengths, and the shortest", 1,
            1'000'000);
  add_count(*group, "--depths", command->passkey.depths,
            "evenly spaced places of the key; 0: LongLoRA's, random in each trial", 0, 1000);
  add_count(*group, "--trials", command->passkey.trials, "of each length and depth", 1, 1'000'000);
  add_count(*group, "--context", command->inference.context,
            "tokens the model is laid out for; 0: the longest prompt's", 0, int64_t{1} << 30);
  group->add_option("--plot", command->plot, "write a heat map of length and depth as SVG to FILE")
      ->type_name("FILE");
  add_cache_options(*verb, command->cache);
  verb->add_option("--json", command->json, "write the result as JSON to FILE, - for standard output")
      ->type_name("FILE");
  verb->footer(
      "Examples:\n"
      "  sinklora eval passkey --model llama --adapter run/step-00001000 --max-tokens 32000 --context 32768\n"
      "  sinklora eval passkey --model smollm2 --depths 11 --trials 3 --plot passkey.svg --json "
      "passkey.json");
  verb->callback([command] { run(*command); });
}

}  // namespace sinklora
