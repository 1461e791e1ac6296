#include <fmt/format.h>

#include <memory>

#include "cli/inference_options.h"
#include "cli/option_checks.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "eval/perplexity.h"
#include "model/attention_options.h"

namespace sinklora {
namespace {

struct PerplexityCommand {
  InferenceOptions inference;
  AttentionOptions attention{.kind = "full"};
  std::filesystem::path data;
  std::string protocol = "blocks", json;
  int64_t stride = 256;
  bool separate_documents = false;
};

Perplexity measure(const PerplexityCommand& c, Llama& model, const AttentionPattern& pattern) {
  const bool quiet = c.json == "-";
  const int64_t vocab = model.config().vocab_size;
  if (c.protocol == "sliding")
    return perplexity_sliding(model, read_all_tokens(c.data, vocab), pattern, c.inference.context, c.stride,
                              !quiet);
  const auto dataset = open_dataset(c.data, {c.inference.context, vocab, c.separate_documents, "", true});
  return perplexity_blocks(model, *dataset, pattern, c.inference.batch, !quiet);
}

void run(const PerplexityCommand& c) {
  const LoadedModel loaded = load_for_inference(c.inference);
  const AttentionPattern pattern =
      make_pattern(c.attention, c.inference.context, loaded.llama->config().num_heads);
  const Perplexity result = measure(c, *loaded.llama, pattern);
  const Json json{
      {"protocol", c.protocol},
      {"context", c.inference.context},
      {"stride", c.protocol == "sliding" ? c.stride : c.inference.context},
      {"windows", result.windows},
      {"tokens", result.tokens},
      {"nll", result.nll},
      {"ppl", result.ppl},
      {"attention", c.attention.kind},
      {"precision", c.inference.precision},
      {"device", c.inference.device},
      {"model", c.inference.model.string()},
      {"adapter", c.inference.adapter.empty() ? Json(nullptr) : Json(c.inference.adapter.string())},
      {"rope_scaling", describe(loaded.llama->config().rope)},
      {"data", c.data.string()}};
  if (!write_result(c.json, json))
    fmt::print(
        "perplexity {:.4f}  (nll {:.9f} nats over {} tokens in {} windows)\n"
        "protocol {}, context {}{}, {} attention, RoPE {}\n",
        result.ppl, result.nll, result.tokens, result.windows, c.protocol, c.inference.context,
        c.protocol == "sliding" ? fmt::format(", stride {}", c.stride) : "", c.attention.kind,
        describe(loaded.llama->config().rope));
}

}  // namespace

void add_eval(CLI::App& app) {
  auto* eval =
      app.add_subcommand("eval", "measure a model: perplexity, and whether it finds what it was told");
  eval->require_subcommand(1);
  add_eval_retrieval(*eval);
  auto* verb = eval->add_subcommand("ppl", "perplexity, by a named protocol");
  const auto command = std::make_shared<PerplexityCommand>();
  add_inference_options(*verb, command->inference);
  auto* group = verb->add_option_group("Measurement");
  group->add_option("--data", command->data, "shard directory, one .h5, or a uint16 stream (.bin)")
      ->required()
      ->type_name("PATH");
  add_count(*group, "--context", command->inference.context, "tokens of a window", 2, int64_t{1} << 30)
      ->required();
  add_choice(*group, "--protocol", command->protocol,
             "blocks: windows side by side; sliding: LongLoRA's eval.py, a window every --stride tokens",
             {"blocks", "sliding"});
  add_count(*group, "--stride", command->stride, "of the sliding protocol", 1);
  add_count(*group, "--batch", command->inference.batch, "windows at once (blocks)", 1, 1 << 20);
  group->add_flag("--separate-documents", command->separate_documents,
                  "packed documents do not see each other (blocks)");
  auto* attention = verb->add_option_group("Attention");
  add_choice(*attention, "--attention", command->attention.kind, "full unless you study a training pattern",
             {"full", "fixed", "s2", "s2-wrap", "sf"});
  add_number(*attention, "--group-ratio", command->attention.group_ratio, "", 1e-6, 1);
  add_number(*attention, "--shifted-heads", command->attention.shifted_heads, "", 0, 1);
  add_count(*attention, "--sinks", command->attention.sinks, "");
  verb->add_option("--json", command->json, "write the result as JSON to FILE, - for standard output")
      ->type_name("FILE");
  verb->footer(
      "Examples:\n"
      "  sinklora eval ppl --model smollm2 --data held-out --context 1024\n"
      "  sinklora eval ppl --model smollm2 --adapter run/step-00000200 --data held-out --context 4096\n"
      "  sinklora eval ppl --model llama --data test.bin --context 8192 --protocol sliding --json -");
  verb->callback([command] { run(*command); });
}

}  // namespace sinklora
