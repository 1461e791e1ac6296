#include "data/tokenize.h"

#include <chrono>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/progress.h"
#include "data/ordered_work.h"
#include "data/tokenize_run.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kShardBytes = int64_t{256} << 20;  // of a shard's rows before compression
constexpr int64_t kMaxShardBytes = int64_t{2} << 30;
constexpr int64_t kPlacesShown = 3;                    // records named on stderr; the others are only counted
constexpr int64_t kBytesInFlight = int64_t{64} << 20;  // of records being tokenized

const char* name_of(Packing packing) {
  if (packing == Packing::none) return "none";
  return packing == Packing::whole ? "whole" : "stream";
}

int64_t rows_per_shard(const TokenizeOptions& options) {
  const int64_t row_bytes = 3 * 4 * options.encode.context;
  if (options.rows_per_shard > 1 && options.rows_per_shard > kMaxShardBytes / row_bytes)
    fail_usage(
        "--rows-per-shard {}: a shard is built in memory; at most {} rows of {} tokens fit into {} bytes",
        options.rows_per_shard, kMaxShardBytes / row_bytes, options.encode.context, kMaxShardBytes);
  return options.rows_per_shard > 0 ? options.rows_per_shard : std::max<int64_t>(1, kShardBytes / row_bytes);
}

int32_t padding_id(const Tokenizer& tokenizer) {
  if (tokenizer.pad_id >= 0) return tokenizer.pad_id;
  return std::max(tokenizer.eos_id, 0);  // LLaMA has no padding token; /doc_len tells padding from text
}

// Everything that the content of the shards depends on.
Json describe_run(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  Json inputs = Json::array();
  for (const fs::path& path : options.inputs)
    inputs.push_back({{"file", path.filename().string()},
                      {"bytes", ReadFile(path).size()},
                      {"sha256", sha256_of_file(path)}});
  return {{"version", SINKLORA_VERSION},
          {"format", options.encode.format},
          {"template", options.encode.template_name},
          {"context", options.encode.context},
          {"packing", name_of(options.packing)},
          {"too_long", options.encode.drop_too_long ? "drop" : "truncate"},
          {"mask_compat", options.encode.longlora_seam ? "longlora" : "none"},
          {"rows_per_shard", rows_per_shard(options)},
          {"tokenizer", tokenizer.kind},
          {"tokenizer_sha256", tokenizer.sha256},
          {"vocab_size", tokenizer.vocab_size},
          {"bos_id", tokenizer.add_bos ? tokenizer.bos_id : -1},
          {"eos_id", tokenizer.eos_id},
          {"pad_id", padding_id(tokenizer)},
          {"inputs", inputs}};
}

ShardInfo shard_info(const Tokenizer& tokenizer, const TokenizeOptions& options, const Json& run) {
  std::string hashes;
  for (const Json& input : run["inputs"]) hashes += input["sha256"].get<std::string>();
  // One input: its own hash, as sha256sum shows it.
  const bool single = options.inputs.size() == 1;
  return {options.encode.context,
          tokenizer.vocab_size,
          padding_id(tokenizer),
          tokenizer.bos_id,
          tokenizer.eos_id,
          tokenizer.sha256,
          single ? hashes : sha256(std::as_bytes(std::span(hashes))),
          options.encode.template_name};
}

TokenizeSummary summarize(const TokenizeRun& run) {
  TokenizeSummary summary;
  for (const ShardEntry& shard : run.shards()) {
    summary.rows += shard.n_examples;
    summary.tokens += shard.tokens;
    summary.scored_tokens += shard.scored_tokens;
    ++summary.shards;
  }
  summary.documents = run.position().documents;
  summary.truncated = run.position().truncated;
  summary.dropped = run.position().dropped;
  summary.prompt_fills = run.position().prompt_fills;
  return summary;
}

Json manifest(const TokenizeSummary& summary, const ShardInfo& info, const Json& run) {
  int64_t bytes = 0;
  for (const Json& input : run["inputs"]) bytes += input["bytes"].get<int64_t>();
  return {{"setup", {{"created_by", "sinklora " SINKLORA_VERSION}, {"mode", run["format"]}}},
          {"processing",
           {{"max_seq_length", info.context},
            {"vocab_size", info.vocab_size},
            {"pad_id", info.pad_id},
            {"bos_id", info.bos_id},
            {"eos_id", info.eos_id}}},
          {"dataset", {{"schema", kShardSchema}, {"source_sha256", info.source_sha256}}},
          {"features", {"input_ids", "attention_mask", "labels"}},
          {"post-process",
           {{"n_examples", summary.rows},
            {"processed", summary.documents + summary.dropped},
            {"successful", summary.documents},
            {"discarded", summary.dropped},
            {"prompt_fills_context", summary.prompt_fills},
            {"truncated", summary.truncated},
            {"raw_bytes_count", bytes},
            {"tokens", summary.tokens},
            {"scored_tokens", summary.scored_tokens}}}};
}

// Writes rows into shards, and after each shard says where the run stands.
class ShardSequence {
 public:
  ShardSequence(TokenizeRun& run, ShardInfo info, int64_t rows)
      : run_(run), info_(std::move(info)), rows_(rows) {}

  void append(const TokenRow& row, const RunPosition& position) {
    if (!writer_) writer_.emplace(run_.next_shard(), info_);
    writer_->append(row);
    if (writer_->rows() == rows_) finish_shard(position);
  }
  void finish_shard(const RunPosition& position) {
    if (!writer_) return;
    const ShardEntry entry = writer_->finish();
    writer_.reset();
    run_.add(entry, position);
  }

 private:
  TokenizeRun& run_;
  ShardInfo info_;
  int64_t rows_;
  std::optional<ShardWriter> writer_;
};

using Work = OrderedWork<Record, EncodedDocument>;

// The next document; a broken record ends the run, and nothing of it stays: with the record mended it is
// another run.
bool next_document(Work& work, TokenizeRun& run, Record& record, EncodedDocument& document) {
  try {
    return work.next(record, document);
  } catch (const Error&) {
    run.discard();
    throw;
  }
}

std::vector<double> megabytes_before(const Json& run) {
  std::vector<double> sums{0};
  for (const Json& input : run["inputs"]) sums.push_back(sums.back() + input["bytes"].get<double>() / 1e6);
  return sums;
}

void count(const EncodedDocument& document, RunPosition& position) {
  position.documents += !document.dropped;
  position.truncated += document.truncated;
  position.dropped += document.dropped;
  position.prompt_fills += document.prompt_fills;
}

void write_shards(const Tokenizer& tokenizer, const TokenizeOptions& options, const ShardInfo& info,
                  const std::vector<double>& megabytes, TokenizeRun& run) {
  const RunPosition begin = run.position();
  RunPosition position = begin;  // at `document`, which its counts leave out
  Record record;
  EncodedDocument document;
  ShardSequence shards(run, info, rows_per_shard(options));
  Packer packer(options.encode.context, options.packing, [&](const TokenRow& row, int64_t consumed) {
    RunPosition here = position;
    here.consumed = consumed;
    if (consumed > 0) count(document, here);  // a start from here goes on inside the document
    shards.append(row, here);
  });
  const DocumentEncoder encoder(tokenizer, options.encode);
  RecordSource source(options.inputs, options.encode.format != "text", begin.record);
  Work work(
      options.workers, kBytesInFlight, [&](Record& next) { return source.next(next); },
      [](const Record& next) { return static_cast<int64_t>(next.bytes.size()); },
      [&](const Record& next) { return encoder.encode(next); });

  std::optional<Progress> progress;
  if (options.show_progress) progress.emplace("tokenize", megabytes.back(), "MB");
  int64_t empty_replies = 0;
  while (next_document(work, run, record, document)) {
    position.record = record.position;
    const bool begun = record.position.number == begin.record.number && begin.consumed > 0;
    if (begun) {
      position.documents -= 1;
      position.truncated -= document.truncated;
    }
    if (document.prompt_fills && options.show_progress && position.prompt_fills < kPlacesShown)
      fmt::print(stderr, "{}: skipped, its prompt fills the whole context of {} tokens\n", record.place,
                 options.encode.context);
    if (document.empty_reply && options.show_progress && ++empty_replies <= kPlacesShown)
      fmt::print(stderr, "{}: has an empty reply, of which only the end is scored\n", record.place);
    if (!document.dropped) packer.add(document, record.position.number, begun ? begin.consumed : 0);
    count(document, position);
    if (progress)
      progress->update(megabytes[static_cast<size_t>(record.position.input)] +
                       static_cast<double>(record.end_offset) / 1e6);
  }
  if (empty_replies > kPlacesShown)
    fmt::print(stderr, "{} records in all have an empty reply\n", empty_replies);
  document = {};
  position.record = {static_cast<int64_t>(options.inputs.size()), 0, JsonElements::Form::detect,
                     position.record.number + 1};
  packer.finish();
  shards.finish_shard(position);
}

}  // namespace

Json to_json(const TokenizeSummary& s) {
  return {{"rows", s.rows},           {"tokens", s.tokens},           {"scored_tokens", s.scored_tokens},
          {"shards", s.shards},       {"kept_shards", s.kept_shards}, {"documents", s.documents},
          {"truncated", s.truncated}, {"dropped", s.dropped},         {"prompt_fills", s.prompt_fills},
          {"seconds", s.seconds}};
}

TokenizeSummary tokenize_files(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  for (const fs::path& path : options.inputs)
    if (options.encode.format == "text" && path.extension() == ".json")
      fail_usage("{}: is JSON by its name, not a text; say --format alpaca or chat, or rename it",
                 path.string());
  const Json description = describe_run(tokenizer, options);
  const ShardInfo info = shard_info(tokenizer, options, description);
  TokenizeRun run(options.out, description);
  const auto kept = static_cast<int64_t>(run.shards().size());
  if (!run.finished()) {
    write_shards(tokenizer, options, info, megabytes_before(description), run);
    if (run.shards().empty()) {
      run.discard();
      fail_input(
          "{}: nothing to be scored in {}; no shard was written", options.inputs[0].string(),
          options.inputs.size() == 1 ? "it" : fmt::format("it and {} more", options.inputs.size() - 1));
    }
    run.finish(manifest(summarize(run), info, description));
  }
  TokenizeSummary summary = summarize(run);
  summary.kept_shards = kept;
  summary.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return summary;
}

}  // namespace sinklora
