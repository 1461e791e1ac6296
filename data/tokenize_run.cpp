#include "data/tokenize_run.h"

#include <system_error>

#include "base/error.h"
#include "base/files.h"
#include "data/tokenize.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxShards = 100000;  // five digits: the order of the names is the order of the rows

Json to_json(const RunPosition& p) {
  return {{"input", p.record.input},   {"offset", p.record.offset}, {"form", static_cast<int>(p.record.form)},
          {"number", p.record.number}, {"consumed", p.consumed},    {"documents", p.documents},
          {"truncated", p.truncated},  {"dropped", p.dropped},      {"prompt_fills", p.prompt_fills}};
}

RunPosition run_position(const Json& json) {
  RunPosition p;
  p.record.input = json.at("input").get<int64_t>();
  p.record.offset = json.at("offset").get<int64_t>();
  p.record.form = static_cast<JsonElements::Form>(json.at("form").get<int>());
  p.record.number = json.at("number").get<int64_t>();
  p.consumed = json.at("consumed").get<int64_t>();
  p.documents = json.at("documents").get<int64_t>();
  p.truncated = json.at("truncated").get<int64_t>();
  p.dropped = json.at("dropped").get<int64_t>();
  p.prompt_fills = json.at("prompt_fills").get<int64_t>();
  return p;
}

void rename_file(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) fail_input("{}: cannot move it into place: {}", to.string(), error.message());
}

}  // namespace

TokenizeRun::TokenizeRun(fs::path out, Json run)
    : out_(std::move(out)), work_(out_ / ".tmp-tokenize"), run_(std::move(run)) {
  std::error_code error;
  created_ = fs::create_directories(out_, error);
  if (error && !fs::exists(out_)) fail_input("{}: cannot create: {}", out_.string(), error.message());
  lock_.emplace(out_);
  if (fs::exists(out_ / kUnfinishedState)) {
    read_state();
  } else if (fs::exists(out_ / kManifestName)) {
    read_finished();
  } else {
    for (const auto& entry : fs::directory_iterator(out_))
      if (entry.path() != work_ && entry.path().filename() != kLockName)
        fail_usage("{}: not empty; choose another output directory", out_.string());
  }
  if (finished_) return;
  fs::create_directory(work_, error);
  if (error) fail_input("{}: cannot write there: {}", out_.string(), error.message());
}

void TokenizeRun::refuse_other(const Json& found) const {
  if (found == run_) return;
  std::string difference = "other settings";
  for (const auto& [key, wanted] : run_.items())
    if (!found.is_object() || !found.contains(key) || found[key] != wanted) {
      difference = fmt::format("\"{}\" {}, not {}", key,
                               found.is_object() && found.contains(key) ? found[key].dump() : "missing",
                               wanted.dump());
      break;
    }
  fail_usage("{}: holds another run of tokenize ({}); choose another output directory, or remove this one",
             out_.string(), difference);
}

void TokenizeRun::read_finished() {
  const Json manifest = read_json(out_ / kManifestName);
  refuse_other(manifest.is_object() ? manifest.value("run", Json()) : Json());
  shards_ = read_manifest(out_).value_or(std::vector<ShardEntry>());
  for (const ShardEntry& shard : shards_)
    if (const std::string wrong = shard_differs(out_ / shard.file, shard); !wrong.empty())
      fail_input("{}: {}; remove the directory and run tokenize again", (out_ / shard.file).string(), wrong);
  try {
    const Json& counts = manifest.at("post-process");
    position_.documents = counts.at("successful").get<int64_t>();
    position_.truncated = counts.at("truncated").get<int64_t>();
    position_.dropped = counts.at("discarded").get<int64_t>();
    position_.prompt_fills = counts.value("prompt_fills_context", int64_t{0});
  } catch (const Json::exception& error) {
    fail_input("{}: {}", (out_ / kManifestName).string(), error.what());
  }
  fs::remove_all(work_);  // of a run that was killed while it cleared up
  finished_ = true;
}

// Where a shard of this run lies: moved up already, or still in the work folder.
fs::path TokenizeRun::place_of(const std::string& shard) const {
  return fs::exists(out_ / shard) ? out_ / shard : work_ / shard;
}

void TokenizeRun::read_state() {
  const fs::path path = out_ / kUnfinishedState;
  const Json state = read_json(path);
  refuse_other(state.is_object() ? state.value("run", Json()) : Json());
  try {
    for (const Json& json : state.at("shards")) {
      const ShardEntry shard = shard_entry(json, path.string());
      const fs::path file = place_of(shard.file);
      // From the first shard that is not what it was, all is made again.
      if (!fs::exists(file) || !shard_differs(file, shard).empty()) break;
      positions_.push_back(run_position(json.at("next")));
      position_ = positions_.back();
      shards_.push_back(shard);
    }
  } catch (const Json::exception& error) {
    fail_input("{}: {}; remove {} to begin anew", path.string(), error.what(), work_.string());
  }
}

fs::path TokenizeRun::next_shard() const {
  const auto number = static_cast<int64_t>(shards_.size());
  if (number == kMaxShards) fail_usage("more than {} shards; choose more rows per shard", kMaxShards);
  return work_ / fmt::format("data-{:05}.h5", number);
}

void TokenizeRun::add(const ShardEntry& shard, const RunPosition& position) {
  shards_.push_back(shard);
  positions_.push_back(position);
  position_ = position;
  Json list = Json::array();
  for (size_t i = 0; i < shards_.size(); ++i) {
    list.push_back(sinklora::to_json(shards_[i]));
    list.back()["next"] = to_json(positions_[i]);
  }
  write_text_atomically(out_ / kUnfinishedState, Json{{"run", run_}, {"shards", list}}.dump(1) + "\n");
}

void TokenizeRun::finish(Json manifest) {
  manifest["run"] = run_;
  manifest["shards"] = Json::array();
  for (const ShardEntry& shard : shards_) manifest["shards"].push_back(sinklora::to_json(shard));
  write_text_atomically(work_ / kManifestName, manifest.dump(1) + "\n");
  for (const ShardEntry& shard : shards_)
    if (fs::exists(work_ / shard.file)) rename_file(work_ / shard.file, out_ / shard.file);
  sync_path(out_);
  rename_file(work_ / kManifestName, out_ / kManifestName);
  sync_path(out_);
  fs::remove(out_ / kUnfinishedState);
  fs::remove_all(work_);
}

void TokenizeRun::discard() {
  std::error_code ignored;
  fs::remove_all(work_, ignored);
  for (const ShardEntry& shard : shards_) fs::remove(out_ / shard.file, ignored);
  if (created_) fs::remove(out_, ignored);
}

}  // namespace sinklora
