#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "cli/attention_options.h"
#include "cli/cache_options.h"
#include "cli/inference_options.h"
#include "cli/option_checks.h"
#include "cli/output.h"
#include "cli/rank_work.h"
#include "cli/verbs.h"
#include "comm/agreement.h"
#include "data/tokenizer.h"
#include "eval/perplexity.h"

namespace sinklora {
namespace {

struct PerplexityCommand {
  InferenceOptions inference;
  AttentionOptions attention{.kind = "full"};
  CacheOptions cache;
  std::filesystem::path data;
  std::string protocol = "blocks", json, gpus = "1";
  int64_t stride = 256, buckets = 16, chunk = 32;
  bool separate_documents = false, force_tokenizer = false, cached = false, stride_given = false;
};

void check(const PerplexityCommand& c) {
  if (c.separate_documents && c.protocol != "blocks")
    fail_usage("--separate-documents is for --protocol blocks: the windows of {} are cut from the text",
               c.protocol);
  if (c.stride_given && c.protocol == "blocks")
    fail_usage("--stride is for --protocol sliding and distributed: blocks lie side by side");
  if (!c.cached) return;
  if (c.protocol != "blocks") fail_usage("--cache is for --protocol blocks, not {}", c.protocol);
  if (c.attention.kind != "full")
    fail_usage("--cache is for full attention, as models generate; leave --attention {} away",
               c.attention.kind);
}

// Prompts of instructions are in the text as well, and no protocol of LongLoRA's knows a mask.
std::vector<int32_t> read_text_to_slide_over(const PerplexityCommand& c, const Dataset& dataset, bool note) {
  AllTokens all = dataset.read_all();
  if (note && all.masked > 0)
    fmt::print(stderr,
               "note: {}: {} of {} tokens are masked, as prompts are, and --protocol {} scores them all the "
               "same; --protocol blocks leaves them out\n",
               c.data.string(), all.masked, all.ids.size(), c.protocol);
  return std::move(all.ids);
}

Perplexity measure(const PerplexityCommand& c, const Dataset& dataset, Llama& model,
                   const PerplexityOptions& options) {
  const int64_t context = c.inference.context;
  if (c.cached)
    return perplexity_cached(model, dataset, make_cache_policy(c.cache, context), c.chunk, context, options);
  const AttentionPattern pattern = make_pattern(c.attention, context, model.config().num_heads);
  if (c.protocol == "blocks") return perplexity_blocks(model, dataset, pattern, context, options);
  const bool first = options.ranks->rank() == 0;
  return perplexity_sliding(model, read_text_to_slide_over(c, dataset, first), pattern, context, c.stride,
                            c.protocol == "sliding" ? SlidingRule::eval : SlidingRule::distributed, options);
}

Json to_json(const PerplexityCommand& c, const Perplexity& result, const RopeScaling& rope,
             const std::string& data_hash) {
  Json curve = Json::array();
  for (const PositionBucket& bucket : result.by_position)
    curve.push_back({{"begin", bucket.begin},
                     {"end", bucket.end},
                     {"tokens", bucket.tokens},
                     {"nll", bucket.tokens > 0 ? Json(bucket.nll) : Json(nullptr)}});
  Json record{{"protocol", c.protocol},
              {"context", c.inference.context},
              {"stride", c.protocol == "blocks" ? c.inference.context : c.stride},
              {"windows", result.windows},
              {"tokens", result.tokens},
              {"nll", result.nll},
              {"ppl", result.ppl},
              {"by_position", curve},
              {"attention", c.attention.kind},
              {"rope_scaling", describe(rope)},
              {"data", c.data.string()},
              {"data_hash", data_hash}};
  if (c.attention.kind != "full") record["group_ratio"] = c.attention.group_ratio;
  if (c.attention.kind == "sf") {
    record["shifted_heads"] = c.attention.shifted_heads;
    record["sinks"] = c.attention.sinks;
  }
  if (c.cached) {
    add_cache(record, c.cache, c.inference.context);
    record["cache_chunk"] = c.chunk;
  }
  add_origin(record, c.inference);
  return record;
}

void report(const PerplexityCommand& c, const Perplexity& result, const RopeScaling& rope,
            const std::string& data_hash) {
  if (write_result(c.json, to_json(c, result, rope, data_hash))) return;
  const std::string seen =
      c.cached ? fmt::format("{} cache", c.cache.kind) : fmt::format("{} attention", c.attention.kind);
  fmt::print(
      "perplexity {:.4f}  (nll {:.9f} nats over {} tokens in {} windows)\n"
      "protocol {}, context {}{}, {}, RoPE {}\n",
      result.ppl, result.nll, result.tokens, result.windows, c.protocol, c.inference.context,
      c.protocol == "blocks" ? "" : fmt::format(", stride {}", c.stride), seen, describe(rope));
}

void run_on(const PerplexityCommand& c, Ops& ops, Communicator& ranks) {
  InferenceOptions inference = c.inference;
  if (c.cached) inference.chunk = c.chunk * inference.batch;
  inference.notes = ranks.rank() == 0;
  const auto model = load_for_inference(inference, ops);
  // The windows of other protocols are cut from the text, whatever rows the shards have, and what is masked in it
  // is told document by document.
  const bool slides = c.protocol != "blocks", any_rows = slides && c.data.extension() != ".bin";
  const auto dataset = open_dataset(
      c.data, {any_rows ? 0 : inference.context, model->config().vocab_size, slides || c.separate_documents,
               tokenizer_hash(inference.model), c.force_tokenizer});
  agree(ranks, {{"data", dataset->hash()}, {"commit", built_commit()}}, "before evaluating");
  const bool first = ranks.rank() == 0;
  if (first && c.protocol == "blocks") fmt::print(stderr, "{}\n", dataset->describe());
  const Perplexity result = measure(c, *dataset, *model,
                                    {.batch = inference.batch,
                                     .buckets = c.buckets,
                                     .show_progress = first && c.json != "-",
                                     .ranks = &ranks,
                                     .data = c.data.string()});
  if (first) report(c, result, model->config().rope, dataset->hash());
  if (!std::isfinite(result.nll))
    fail(ExitCode::non_finite,
         "{}: the loss is not finite: the weights hold numbers that are none, or overflow {}",
         inference.model.string(), inference.precision);
}

void run(const PerplexityCommand& c) {
  check(c);
  work_on_ranks({.device = c.inference.device,
                 .precision = c.inference.precision,
                 .gpus = c.gpus,
                 .quiet = c.json == "-"},
                [&](const RankPlace& place) {
                  run_on(c, *place.ops, place.ranks);
                  return ExitCode::ok;
                });
}

void add_measurement(CLI::App& verb, PerplexityCommand& c) {
  auto* group = verb.add_option_group("Measurement");
  group->add_option("--data", c.data, "shard directory, one .h5, or a uint16 stream (.bin)")
      ->required()
      ->type_name("PATH");
  add_count(*group, "--context", c.inference.context, "tokens of a window", 2, int64_t{1} << 30)->required();
  add_choice(*group, "--protocol", c.protocol,
             "blocks: windows side by side; sliding: LongLoRA's eval.py, a window every --stride tokens, "
             "mean of the windows' means, the last one left out; distributed: its eval_distributed.py, mean "
             "over all positions of all windows",
             {"blocks", "sliding", "distributed"});
  add_count(*group, "--stride", c.stride, "of sliding and distributed", 1);
  add_count(*group, "--batch", c.inference.batch, "windows at once", 1, 1 << 20);
  add_count(*group, "--buckets", c.buckets, "of positions, of which the JSON gives the loss each", 1,
            1 << 16);
  group->add_flag("--force-tokenizer", c.force_tokenizer,
                  "accept shards made with another tokenizer than the model's");
  group->add_flag("--separate-documents", c.separate_documents,
                  "packed documents do not see each other (blocks)");
  add_gpus(*group, c.gpus,
           "processes on this machine, each with its share of the windows; any number gives the same sums");
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
  add_measurement(*verb, *command);
  auto* attention = verb->add_option_group("Attention");
  CLI::Option* kind =
      add_attention_options(*attention, command->attention, "full unless you study a training pattern");
  for (CLI::Option* option : attention->get_options())
    if (option != kind) option->needs(kind);
  auto* cache = add_cache_options(*verb, command->cache);
  add_count(*cache, "--cache-chunk", command->chunk,
            "tokens that see the cache and one another, then enter it; 1: as a text is generated", 1, 1 << 20)
      ->needs(cache->get_option("--cache"));
  add_json(*verb, command->json);
  verb->footer(
      "With --cache, windows go through a cache as texts do that are generated: what it evicts is not seen "
      "again.\n\n"
      "Examples:\n"
      "  sinklora eval ppl --model smollm2 --data held-out --context 4096\n"
      "  sinklora eval ppl --model smollm2 --adapter run --data held-out --context 4096\n"
      "  sinklora eval ppl --model llama --data test.bin --context 8192 --protocol sliding --gpus all --json "
      "-\n"
      "  sinklora eval ppl --model smollm2 --data held-out --context 4096 --cache h2o --cache-budget 0.2");
  verb->callback([verb, command, cache] {
    resolve_precision(command->inference);
    command->cached = cache->get_option("--cache")->count() > 0;
    command->stride_given = verb->get_option("--stride")->count() > 0;
    note_idle_pattern(*verb, command->attention.kind);
    run(*command);
  });
}

}  // namespace sinklora
