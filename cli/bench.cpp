#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "bench/decode.h"
#include "bench/ops.h"
#include "bench/step.h"
#include "cli/attention_options.h"
#include "cli/cache_options.h"
#include "cli/option_checks.h"
#include "cli/output.h"
#include "cli/rank_work.h"
#include "cli/verbs.h"
#include "model/shapes.h"

namespace sinklora {
namespace {

void add_machine(CLI::App& verb, std::string& device, std::string& precision) {
  add_choice(verb, "--device", device, "", {"cpu", "cuda"});
  add_choice(verb, "--precision", precision, "", {"bf16", "fp32"});
}

void add_repeats(CLI::App& verb, int64_t& warmup, int64_t& repeat) {
  add_count(verb, "--warmup", warmup, "calls before timing", 0, 1000);
  add_count(verb, "--repeat", repeat, "measurements; the median is reported", 1, 1000);
}

void print_profile(const Json& result) {
  const Json& profile = result.at("profile");
  std::vector<Json> rows = profile.at("ops");
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Json& a, const Json& b) { return a.at("ms") > b.at("ms"); });
  fmt::print("\n{:<34}{:>7}{:>12}{:>9}\n", "operation", "calls", "ms", "share");
  for (const Json& row : rows) {
    fmt::print("{:<34}{:>7}{:>12.3f}{:>8.1f}%", row.at("op").get<std::string>(),
               row.at("calls").get<int64_t>(), row.at("ms").get<double>(),
               100 * row.at("share").get<double>());
    if (!row.at("tflops").is_null()) fmt::print("{:>10.3f} TFLOP/s", row.at("tflops").get<double>());
    if (!row.at("gb_per_s").is_null()) fmt::print("{:>10.1f} GB/s", row.at("gb_per_s").get<double>());
    fmt::print("\n");
  }
  fmt::print("{:<41}{:>12.3f}\n{:<41}{:>12.3f}\n{:<41}{:>12.3f}\n", "sum", profile.at("sum_ms").get<double>(),
             "this step, every operation waited for", profile.at("step_ms").get<double>(),
             "a step that nobody watches", result.at("step_ms").get<double>());
}

void print_step(const StepBench& options, const Json& result, const std::string& json) {
  if (write_result(json, result)) return;
  const auto ranks = result.at("ranks").get<int>();
  fmt::print("{} at {} tokens, {}{}: {:.1f} ms a step, {:.0f} tokens/s, {:.1f} GiB\n", options.shape,
             options.context, options.attention.kind, ranks > 1 ? fmt::format(", {} ranks", ranks) : "",
             result.at("step_ms").get<double>(), result.at("tokens_per_s").get<double>(),
             result.at("peak_mem_gib").get<double>());
  if (options.profile) print_profile(result);
}

void add_step(CLI::App& bench) {
  auto* verb = bench.add_subcommand("step", "one training step of a model shape with random weights");
  const auto options = std::make_shared<StepBench>();
  const auto json = std::make_shared<std::string>();
  add_choice(*verb, "--shape", options->shape, "", shape_names());
  add_count(*verb, "--context", options->context, "tokens of a sample", 2, int64_t{1} << 24);
  add_count(*verb, "--batch", options->batch, "samples of a step", 1, 1 << 20);
  add_attention_options(*verb, options->attention);
  add_choice(*verb, "--trainable", options->trainable, "", {"lora", "lora+", "full"});
  add_choice(*verb, "--recompute", options->recompute, "", {"auto", "none", "cheap", "block"});
  verb->add_flag("--offload", options->offload, "block inputs wait in host memory");
  add_number(*verb, "--memory-limit", options->memory_limit, "GiB to fit into, for --recompute auto; 0: all",
             0, 1e6);
  add_machine(*verb, options->device, options->precision);
  add_count(*verb, "--warmup", options->warmup, "steps before timing", 0, 1000);
  add_count(*verb, "--steps", options->steps, "timed steps; the median is reported", 1, 1000);
  verb->add_flag("--profile", options->profile, "one more step, with the time of every operation");
  add_json(*verb, *json);
  add_gpus(*verb, options->gpus,
           "GPUs of this machine to use, a process each: --batch samples on every one. With --device cpu: N "
           "processes that share the cores");
  verb->add_flag("--shard-base", options->shard_base, "ranks share the frozen matrices of the layers");
  verb->footer(
      "Examples:\n"
      "  sinklora bench step --shape llama2-7b --context 8192 --attention sf\n"
      "  sinklora bench step --shape llama2-7b --context 8192 --gpus all\n"
      "  sinklora bench step --shape llama2-7b --context 8192 --recompute cheap --profile\n"
      "  sinklora bench step --shape smollm2-135m --context 512 --device cpu --precision fp32 --json -");
  verb->callback([verb, options, json] {
    note_idle_pattern(*verb, options->attention.kind);
    work_on_ranks(
        {.device = options->device, .precision = options->precision, .gpus = options->gpus, .quiet = true},
        [&](const RankPlace& place) {
          const Json result = bench_step(*options, place);
          if (place.ranks.rank() == 0) print_step(*options, result, *json);
          return ExitCode::ok;
        });
  });
}

void add_attention(CLI::App& bench) {
  auto* verb = bench.add_subcommand("attention", "attention, forward and backward, in every pattern");
  const auto options = std::make_shared<AttentionBench>();
  const auto json = std::make_shared<std::string>(), shape = std::make_shared<std::string>();
  add_counts(*verb, "--context", options->contexts, "tokens of a sequence", 1, int64_t{1} << 24);
  add_choices(*verb, "--patterns", options->patterns, "", kAttentionKinds);
  add_pattern_options(*verb, options->attention);
  add_count(*verb, "--batch", options->batch, "sequences", 1, 1024);
  CLI::Option* named = add_choice(*verb, "--shape", *shape, "heads and head_dim of a model", shape_names());
  add_count(*verb, "--heads", options->heads, "query heads", 1, 1024)->excludes(named);
  add_count(*verb, "--kv-heads", options->kv_heads, "key and value heads", 1, 1024)->excludes(named);
  add_count(*verb, "--head-dim", options->head_dim, "", 1, 512)->excludes(named);
  add_machine(*verb, options->device, options->precision);
  add_repeats(*verb, options->warmup, options->repeat);
  add_json(*verb, *json);
  verb->footer(
      "TFLOP/s count visible pairs alone: 4 D for each pair and head forward, 10 D backward.\n\nExamples:\n"
      "  sinklora bench attention --context 8192,16384,32768 --patterns full,s2,sf\n"
      "  sinklora bench attention --context 4096 --shape llama3-8b --patterns sf --sinks 64\n"
      "  sinklora bench attention --context 1024 --heads 9 --kv-heads 3 --head-dim 64 --device cpu --json -");
  verb->callback([options, json, shape] {
    if (!shape->empty()) {
      const LlamaConfig config = shape_named(*shape);
      options->heads = config.num_heads, options->kv_heads = config.num_kv_heads;
      options->head_dim = config.head_dim;
    }
    const Json rows = bench_attention(*options);
    if (write_result(*json, rows)) return;
    for (const Json& row : rows)
      fmt::print("{:>8} tokens  {:<8} {:<9} {:10.3f} ms {:8.3f} TFLOP/s\n", row.at("context").get<int64_t>(),
                 row.at("pattern").get<std::string>(), row.at("direction").get<std::string>(),
                 row.at("ms").get<double>(), row.at("tflops").get<double>());
  });
}

void add_gemm(CLI::App& bench) {
  auto* verb =
      bench.add_subcommand("gemm", "the linears of a model shape, with and without LoRA; LM head and loss");
  const auto options = std::make_shared<GemmBench>();
  const auto json = std::make_shared<std::string>();
  add_choice(*verb, "--shape", options->shape, "", shape_names());
  add_count(*verb, "--context", options->context, "tokens", 1, int64_t{1} << 24);
  add_count(*verb, "--lora-rank", options->lora_rank, "0: without adapters alone", 0, 4096);
  add_machine(*verb, options->device, options->precision);
  add_repeats(*verb, options->warmup, options->repeat);
  add_json(*verb, *json);
  verb->footer(
      "Examples:\n"
      "  sinklora bench gemm --shape llama2-7b --context 8192\n"
      "  sinklora bench gemm --shape llama3-8b --context 4096 --lora-rank 64 --json gemm.json\n"
      "  sinklora bench gemm --shape smollm2-135m --context 512 --device cpu --precision fp32");
  verb->callback([options, json] {
    const Json rows = bench_gemm(*options);
    if (write_result(*json, rows)) return;
    for (const Json& row : rows)
      fmt::print("{:<8} {:>6} x {:<6} r {:<3} {:<16} {:10.3f} ms {:8.3f} TFLOP/s\n",
                 row.at("linear").get<std::string>(), row.at("in").get<int64_t>(),
                 row.at("out").get<int64_t>(), row.at("lora_rank").get<int64_t>(),
                 row.at("direction").get<std::string>(), row.at("ms").get<double>(),
                 row.at("tflops").get<double>());
  });
}

void add_decode(CLI::App& bench) {
  auto* verb = bench.add_subcommand("decode", "generating text after a long prompt, with any cache");
  const auto options = std::make_shared<DecodeBench>();
  const auto json = std::make_shared<std::string>();
  add_choice(*verb, "--shape", options->shape, "", shape_names());
  add_count(*verb, "--prompt", options->prompt, "tokens that are read before", 1, int64_t{1} << 24);
  add_count(*verb, "--chunk", options->chunk, "tokens of the prompt in one pass", 1, int64_t{1} << 20);
  add_count(*verb, "--batch", options->batch, "sequences side by side; 0: as many as memory holds", 0, 4096);
  add_cache_options(*verb, options->cache);
  add_machine(*verb, options->device, options->precision);
  add_count(*verb, "--warmup", options->warmup, "tokens of each sequence before timing", 0, 1000);
  add_count(*verb, "--steps", options->steps, "timed tokens of each sequence; the median is reported", 1,
            1000000);
  verb->add_flag("--profile", options->profile, "say what one more step's time goes to");
  add_json(*verb, *json);
  verb->footer(
      "GB/s: weights, and keys and values that are remembered, read once a step.\n\nExamples:\n"
      "  sinklora bench decode --shape llama2-7b --prompt 32768\n"
      "  sinklora bench decode --shape llama2-7b --prompt 32768 --cache h2o --cache-budget 0.2 --batch 0\n"
      "  sinklora bench decode --shape smollm2-135m --prompt 256 --chunk 128 --device cpu --precision fp32");
  verb->callback([options, json] {
    const Json result = bench_decode(*options);
    if (write_result(*json, result)) return;
    fmt::print(
        "{}, {} cache of {} tokens, {} sequences: {:.3f} ms a step, {:.1f} tokens/s, {:.0f} GB/s, {:.1f} "
        "GiB\n"
        "prompt of {} tokens: {:.0f} ms, {:.0f} tokens/s\n",
        options->shape, options->cache.kind, result.at("budget").get<int64_t>(),
        result.at("batch").get<int64_t>(), result.at("step_ms").get<double>(),
        result.at("tokens_per_s").get<double>(), result.at("gb_per_s").get<double>(),
        result.at("peak_mem_gib").get<double>(), options->prompt, result.at("prefill_ms").get<double>(),
        result.at("prefill_tokens_per_s").get<double>());
    if (options->profile) print_profile(result);
  });
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* bench =
      app.add_subcommand("bench", "how fast it is: bench step, bench attention, bench gemm, bench decode");
  bench->require_subcommand(1);
  add_step(*bench);
  add_attention(*bench);
  add_gemm(*bench);
  add_decode(*bench);
}

}  // namespace sinklora
