// sinklora tokenize: texts, instructions or chats -> HDF5 shards.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "cli/option_checks.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "data/templates.h"
#include "data/tokenize.h"

namespace sinklora {
namespace {

struct Arguments {
  std::string tokenizer, out, format = "text", template_name, too_long = "truncate", mask_compat = "none",
                              json;
  std::vector<std::string> inputs;
  int64_t context = 0, rows_per_shard = 0;
  int64_t workers = std::max<int64_t>(1, std::thread::hardware_concurrency());
  bool pack = false, no_pack = false;
  CLI::Option* too_long_option = nullptr;
};

TokenizeOptions resolve(const Arguments& arguments) {
  const bool text = arguments.format == "text";
  if (text && !arguments.template_name.empty() && arguments.template_name != "none")
    fail_usage("--template {} is for --format alpaca or chat; a text has none", arguments.template_name);
  if (text && arguments.too_long_option->count() > 0)
    fail_usage("--too-long is for --format alpaca or chat; a long text goes on in the next row");
  if (arguments.format != "alpaca" && arguments.mask_compat != "none")
    fail_usage("--mask-compat {} is for --format alpaca", arguments.mask_compat);

  TokenizeOptions options;
  options.inputs.assign(arguments.inputs.begin(), arguments.inputs.end());
  options.out = arguments.out;
  options.rows_per_shard = arguments.rows_per_shard;
  options.workers = arguments.workers;
  options.encode = {arguments.format,
                    !arguments.template_name.empty() ? arguments.template_name
                    : text                           ? "none"
                                                     : "llama2",
                    arguments.mask_compat == "longlora", arguments.too_long == "drop", arguments.context};
  const bool pack = text ? !arguments.no_pack : arguments.pack;
  options.packing = !pack ? Packing::none : text ? Packing::stream : Packing::whole;
  return options;
}

void run(const Arguments& arguments) {
  const TokenizeOptions options = resolve(arguments);
  const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(arguments.tokenizer);
  print_notes(*tokenizer);
  if (arguments.format == "chat") note_missing_token(chat_template(options.encode.template_name), *tokenizer);
  const TokenizeSummary summary = tokenize_files(*tokenizer, options);
  write_result(arguments.json, to_json(summary));
  std::FILE* out = arguments.json == "-" ? stderr : stdout;
  fmt::print(out, "{}: {} rows of {} tokens in {} shard{}", arguments.out, summary.rows, arguments.context,
             summary.shards, summary.shards == 1 ? "" : "s");
  if (summary.kept_shards > 0) fmt::print(out, " ({} found finished and kept)", summary.kept_shards);
  fmt::print(out, "\n{} documents, {} tokens, {} of them scored; {} truncated, {} dropped; {:.1f} s\n",
             summary.documents, summary.tokens, summary.scored_tokens, summary.truncated, summary.dropped,
             summary.seconds);
  if (summary.prompt_fills > 0)
    fmt::print(
        out,
        "{} of the dropped have a prompt that fills the whole context: nothing of their answer could be "
        "scored\n",
        summary.prompt_fills);
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("tokenize", "texts, instructions or chats -> HDF5 shards of token ids");
  const auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;

  verb->add_option("--tokenizer", a.tokenizer,
                   "tokenizer.model, tokenizer.json, a model directory, or the word byte")
      ->required()
      ->type_name("FILE")
      ->group("Input");
  verb->add_option("--input", a.inputs, "files, in this order; *.jsonl and all of alpaca and chat are JSON")
      ->required()
      ->type_name("FILE")
      ->group("Input");
  add_choice(
      *verb, "--format", a.format,
      "text: one file a document, or {\"text\"} a line of *.jsonl; alpaca: {\"instruction\", \"output\", "
      "\"input\"?}; chat: {\"messages\": [{\"role\", \"content\"}]} or ShareGPT's "
      "{\"conversations\": [{\"from\", \"value\"}]}, or the one's turns under the other's name",
      {"text", "alpaca", "chat"})
      ->group("Input");

  add_count(*verb, "--context", a.context, "tokens of a row", 2, int64_t{1} << 24)
      ->required()
      ->default_str("")
      ->group("Rows");
  CLI::Option* pack = verb->add_flag(
      "--pack", a.pack, "several documents a row, which never see each other in training (default for text)");
  pack->group("Rows");
  verb->add_flag("--no-pack", a.no_pack, "each document begins a row (default for alpaca and chat)")
      ->excludes(pack)
      ->group("Rows");
  a.too_long_option = add_choice(*verb, "--too-long", a.too_long,
                                 "alpaca, chat: cut or drop what is longer than a row", {"truncate", "drop"});
  a.too_long_option->group("Rows");

  verb->add_option("--template", a.template_name,
                   "what surrounds instructions (llama2, alpaca, none) and chats (llama2, llama3, chatml, "
                   "alpaca) [llama2]")
      ->check(CLI::IsMember({"llama2", "llama3", "chatml", "alpaca", "none"}))
      ->type_name("WORD")
      ->group("Prompts");
  add_choice(*verb, "--mask-compat", a.mask_compat,
             "alpaca: longlora tokenizes prompt and answer in one go and masks as many tokens as the prompt "
             "alone has",
             {"none", "longlora"})
      ->group("Prompts");

  verb->add_option("--out", a.out, "directory of the shards; an interrupted run goes on there")
      ->required()
      ->type_name("DIR")
      ->group("Output");
  add_count(*verb, "--rows-per-shard", a.rows_per_shard, "rows of a shard; 0: 256 MiB before compression", 0,
            1 << 30)
      ->group("Output");
  add_count(*verb, "--workers", a.workers, "threads; the result does not depend on it", 1, 1024)
      ->group("Output");
  add_json(*verb, a.json, "the counts")->group("Output");

  verb->footer(
      "Examples:\n"
      "  sinklora tokenize --tokenizer Llama-2-7b --input book1.txt book2.txt --context 8192 --out books\n"
      "  sinklora tokenize --tokenizer Llama-2-7b --input LongAlpaca-12k.json --format alpaca --context "
      "32768 --out sft\n"
      "  sinklora tokenize --tokenizer byte --input chats.jsonl --format chat --pack --context 4096 --out "
      "chats\n"
      "Memory: one record of the input at a time and worker must fit. Interrupted: run the same command "
      "again.\n"
      "Exit codes: 0 done, 2 wrong command line or the directory holds something else, 3 broken input or "
      "full disk.");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace sinklora
