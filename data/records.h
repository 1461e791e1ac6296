// The records of the input files, one after another: whole texts, or the elements of JSON files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/files.h"
#include "data/json_stream.h"

namespace sinklora {

// Takes a byte-order mark off. Throws Error(input) where a file's content is not UTF-8 text without NUL: what another
// encoding, an archive or a shard would make of itself is not worth learning.
void clean_text(std::string& text, const std::filesystem::path& path);

// Where a record lies; a source can be started again there.
struct RecordPosition {
  int64_t input = 0;   // number of the input file; the number of inputs means the end
  int64_t offset = 0;  // byte in it
  JsonElements::Form form = JsonElements::Form::detect;
  int64_t number = 0;  // of the record among all
};

struct Record {
  RecordPosition position;
  int64_t end_offset = 0;  // byte in its input behind it
  bool is_json = false;
  std::string bytes;  // a text, or one JSON value not parsed yet
  std::string place;  // "file: record 12", for messages
};

// One file is one record, except JSON files, whose elements are: every file of format alpaca and chat, and
// *.jsonl of format text. A record must fit into memory: a tokenizer promises nothing about the ids of a text
// cut in two.
class RecordSource {
 public:
  RecordSource(std::vector<std::filesystem::path> inputs, bool all_json, const RecordPosition& start = {});
  bool next(Record& record);

 private:
  std::vector<std::filesystem::path> inputs_;
  bool all_json_;
  RecordPosition position_;
  std::unique_ptr<ReadFile> file_;
  std::unique_ptr<JsonElements> elements_;
};

}  // namespace sinklora
