// The directory of one tokenize run: what is there already, what has been finished, and the move into place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "data/manifest.h"
#include "data/records.h"

namespace sinklora {

// Where a run stands after a shard.
struct RunPosition {
  RecordPosition record;  // the record to go on with
  int64_t consumed = 0;   // its tokens that are in rows already
  // Counted so far, as in TokenizeSummary.
  int64_t documents = 0, truncated = 0, dropped = 0, prompt_fills = 0;
};

class TokenizeRun {
 public:
  // Locks `out` against a second run, and reads what an earlier start of this run left. `run` describes the
  // run: inputs, options, tokenizer. Throws Error(usage) when `out` holds something else.
  TokenizeRun(std::filesystem::path out, Json run);

  bool finished() const { return finished_; }  // `out` holds the whole result already
  const std::vector<ShardEntry>& shards() const { return shards_; }
  const RunPosition& position() const { return position_; }

  std::filesystem::path next_shard() const;  // the file to write
  void add(const ShardEntry& shard, const RunPosition& position);
  void finish(Json manifest);  // adds the shards, moves all into place
  void discard();              // removes all that was written: the input is broken

 private:
  void read_finished();
  void read_state();
  void refuse_other(const Json& found) const;
  std::filesystem::path place_of(const std::string& shard) const;

  std::filesystem::path out_, work_;
  Json run_;
  std::optional<DirectoryLock> lock_;
  bool created_ = false, finished_ = false;
  std::vector<ShardEntry> shards_;
  std::vector<RunPosition> positions_;  // after each shard
  RunPosition position_;
};

}  // namespace sinklora
