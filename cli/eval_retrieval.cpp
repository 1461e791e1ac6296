// sinklora eval passkey, lines, topics, questions: is what was told found again?
#include <fmt/format.h>

#include <memory>

#include "base/error.h"
#include "base/hash.h"
#include "cli/cache_options.h"
#include "cli/inference_options.h"
#include "cli/output.h"
#include "cli/rank_work.h"
#include "cli/verbs.h"
#include "comm/agreement.h"
#include "eval/long_chat.h"
#include "eval/passkey.h"

namespace sinklora {
namespace {

struct RetrievalCommand {
  std::string protocol;  // the verb's name
  InferenceOptions inference;
  RetrievalOptions retrieval;
  CacheOptions cache;
  std::filesystem::path tokenizer, plot;
  std::string form = "none", json, gpus = "1";
  int64_t seed = 1;
  std::vector<std::filesystem::path> books;
  BookQuestionOptions questions;
};

RetrievalTask make_task(const RetrievalCommand& c, const Tokenizer& tokenizer) {
  if (c.protocol == "passkey") {
    passkey_prompt(passkey_filler(c.retrieval.interval), 0, {});  // refuses what has no filler
    return passkey_task(tokenizer);
  }
  const auto seed = static_cast<uint64_t>(c.seed);
  RetrievalWriter writer;
  if (c.protocol == "questions" && c.books.empty()) {
    writer = synthetic_questions_writer(seed);
  } else if (c.protocol == "questions") {
    BookQuestionOptions options = c.questions;
    options.seed = seed;
    writer = book_questions_writer(BookQuestions(c.books, options));
  } else {
    writer = c.protocol == "lines" ? lines_writer(seed) : topics_writer(seed);
  }
  return worded_task(tokenizer, instruction_template(c.form), std::move(writer));
}

Json to_json(const RetrievalCommand& c, std::span<const RetrievalCell> cells, const RopeScaling& rope) {
  Json list = Json::array();
  int64_t trials = 0, correct = 0;
  for (const RetrievalCell& cell : cells) {
    list.push_back({{"wanted_tokens", cell.wanted_tokens},
                    {"tokens", cell.tokens},
                    {"depth", cell.depth ? Json(*cell.depth) : Json(nullptr)},
                    {"trials", cell.trials},
                    {"correct", cell.correct},
                    {"accuracy", cell.accuracy()}});
    trials += cell.trials;
    correct += cell.correct;
  }
  Json record{
      {"protocol", c.protocol}, {"context", c.inference.context},
      {"trials", trials},       {"accuracy", static_cast<double>(correct) / static_cast<double>(trials)},
      {"cells", list},          {"attention", "full"}};
  record["rope_scaling"] = describe(rope);
  if (c.protocol != "passkey") {
    record["template"] = c.form;
    record["seed"] = c.seed;
  }
  if (c.protocol == "questions") {
    Json books = Json::array();
    for (const auto& book : c.books)
      books.push_back({{"file", book.string()}, {"sha256", sha256_of_file(book)}});
    record["books"] = std::move(books);
    if (!c.books.empty()) {
      record["facts"] = c.questions.facts;
      record["held_out"] = c.questions.held_out;
    }
  }
  add_cache(record, c.cache, c.inference.context);
  add_origin(record, c.inference);
  return record;
}

void report(const RetrievalCommand& c, std::span<const RetrievalCell> cells, const RopeScaling& rope) {
  const std::string no_depth = c.protocol == "topics" ? "first" : "random";
  if (!write_result(c.json, to_json(c, cells, rope)))
    for (const RetrievalCell& cell : cells)
      fmt::print("{:>7} tokens ({:.0f})  depth {:>6}  {}/{}\n", cell.wanted_tokens, cell.tokens,
                 cell.depth ? fmt::format("{:.2f}", *cell.depth) : no_depth, cell.correct, cell.trials);
  if (!c.plot.empty())
    write_heat_map(c.plot, fmt::format("Retrieval ({}), % of the answers right", c.protocol), no_depth,
                   cells);
}

void run(RetrievalCommand& c) {
  if (c.retrieval.interval > c.retrieval.max_tokens)
    fail_usage("--interval {} is longer than --max-tokens {}", c.retrieval.interval, c.retrieval.max_tokens);
  const auto tokenizer = open_tokenizer(c.tokenizer.empty() ? c.inference.model : c.tokenizer);
  print_notes(*tokenizer);
  const RetrievalTask task = make_task(c, *tokenizer);
  const int64_t longest = retrieval_context(task, c.retrieval);
  if (c.inference.context == 0) c.inference.context = longest;
  if (c.inference.context < longest)
    fail_usage(
        "--context {}: the longest prompt and its answer have {} tokens; give that or a smaller --max-tokens",
        c.inference.context, longest);
  const KvCachePolicy policy = make_cache_policy(c.cache, c.inference.context);
  const auto work = [&](const RankPlace& place) {
    agree(place.ranks, {{"commit", built_commit()}}, "before evaluating");
    InferenceOptions inference = c.inference;
    inference.notes = place.ranks.rank() == 0;
    const auto model = load_for_inference(inference, *place.ops);
    CachedSession session(*model, policy);
    const bool first = place.ranks.rank() == 0;
    const auto cells = measure_retrieval(session, task, c.retrieval, first && c.json != "-", &place.ranks);
    if (first) report(c, cells, model->config().rope);
    return ExitCode::ok;
  };
  work_on_ranks({.device = c.inference.device,
                 .precision = c.inference.precision,
                 .gpus = c.gpus,
                 .quiet = c.json == "-"},
                work);
}

CLI::App* add_retrieval(CLI::App& eval, const std::string& name, const std::string& help,
                        const std::shared_ptr<RetrievalCommand>& command) {
  RetrievalCommand& c = *command;
  c.protocol = name;
  auto* verb = eval.add_subcommand(name, help);
  add_inference_options(*verb, c.inference);
  add_tokenizer(*verb, c.tokenizer);
  auto* group = verb->add_option_group("Measurement");
  add_count(*group, "--max-tokens", c.retrieval.max_tokens,
            name == "passkey" ? "longest prompt, in LongLoRA's unit of 3.75 characters: with a tokenizer of "
                                "bytes, some 4 times as many tokens"
                              : "longest prompt, roughly",
            1, 1'000'000);
  add_count(*group, "--interval", c.retrieval.interval, "between the lengths, and the shortest", 1,
            1'000'000);
  if (name != "topics")
    add_count(*group, "--depths", c.retrieval.depths,
              name == "passkey" ? "evenly spaced places of the key; 0: LongLoRA's, random in each trial"
                                : "evenly spaced places of what is asked for; 0: random in each trial",
              0, 1000);
  add_count(*group, "--trials", c.retrieval.trials, "of each length and depth", 1, 1'000'000);
  add_count(*group, "--context", c.inference.context,
            "tokens the model is laid out for; 0: the longest prompt's", 0, int64_t{1} << 30);
  if (name != "passkey") {
    add_choice(*group, "--template", c.form, "what surrounds the prompt, as the model was fine-tuned",
               {"none", "llama2", "alpaca"});
    add_count(*group, "--seed", c.seed, "equal seeds ask equal questions");
  }
  add_gpus(*group, c.gpus, "processes on this machine, each with its share of the trials");
  group->add_option("--plot", c.plot, "write a heat map of length and depth as SVG to FILE")
      ->type_name("FILE");
  auto* cache = add_cache_options(*verb, c.cache);
  c.inference.chunk = kPromptChunk;
  add_count(*cache, "--cache-chunk", c.inference.chunk,
            "tokens of a prompt in one pass; they see one another whatever the budget", 1, int64_t{1} << 20);
  add_json(*verb, c.json);
  verb->callback([command] {
    resolve_precision(command->inference);
    run(*command);
  });
  return verb;
}

}  // namespace

void add_eval_retrieval(CLI::App& eval) {
  const auto command = [] { return std::make_shared<RetrievalCommand>(); };
  add_retrieval(eval, "passkey", "find a number in a long irrelevant text, as LongLoRA tests it", command())
      ->footer(
          "Examples:\n"
          "  sinklora eval passkey --model llama --adapter run --max-tokens 32000 --context "
          "32768\n"
          "  sinklora eval passkey --model smollm2 --depths 11 --trials 3 --plot passkey.svg --json "
          "passkey.json\n"
          "  sinklora eval passkey --model smollm2 --max-tokens 4000 --cache streaming --cache-budget 0.5");
  add_retrieval(eval, "lines", "find the number of one line among hundreds, in the manner of LongChat",
                command())
      ->footer(
          "Examples:\n"
          "  sinklora eval lines --model llama-chat --template llama2 --max-tokens 16000 --interval 4000\n"
          "  sinklora eval lines --model smollm2 --depths 5 --cache h2o --cache-budget 0.2 --plot lines.svg\n"
          "  sinklora eval lines --model llama --adapter run --device cuda --gpus all --json lines.json");
  add_retrieval(eval, "topics", "name the first topic of many conversations, in the manner of LongChat",
                command())
      ->footer(
          "Examples:\n"
          "  sinklora eval topics --model llama-chat --template llama2 --max-tokens 16000 --interval 4000\n"
          "  sinklora eval topics --model smollm2 --adapter run --interval 4000 --trials 50 --seed 2\n"
          "  sinklora eval topics --model smollm2 --interval 4000 --cache h2o --cache-budget 0.2 --json "
          "topics.json");
  const auto questions = command();
  auto* verb = add_retrieval(eval, "questions",
                             "answer questions about long documents, as `corpus` writes them", questions);
  auto* books = verb->add_option_group("Books");
  auto* files =
      books
          ->add_option("--books", questions->books,
                       "text files, others than those trained on; without them, documents of `corpus`")
          ->type_name("FILE");
  add_count(*books, "--facts", questions->questions.facts, "planted in each passage; one is asked for", 1,
            500)
      ->needs(files);
  books
      ->add_flag("--held-out", questions->questions.held_out,
                 "only things and numbers that `corpus` without --held-out never has")
      ->needs(files);
  verb->footer(
      "Examples:\n"
      "  sinklora eval questions --model smollm2 --adapter run --template llama2 --max-tokens 4000\n"
      "  sinklora eval questions --model mini --adapter sft --template llama2 --books heldout/*.txt --facts "
      "4 --json -\n"
      "  sinklora eval questions --model mini --adapter sft --template llama2 --books "
      "heldout/*.txt \\\n"
      "      --held-out --max-tokens 4096 --interval 1024 --depths 5 --plot questions.svg");
}

}  // namespace sinklora
