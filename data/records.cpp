#include "data/records.h"

#include "base/error.h"
#include "base/foreign_format.h"
#include "data/utf8.h"

namespace sinklora {

void clean_text(std::string& text, const std::filesystem::path& path) {
  refuse_foreign_format(text, path.string());
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);  // a byte-order mark
  if (is_utf8(text) && text.find('\0') == std::string::npos) return;
  size_t at = 0;
  while (const size_t length = text[at] == '\0' ? 0 : utf8_length(text, at)) at += length;
  fail_input("{}: byte {} is no UTF-8 text; convert it (iconv -f LATIN1 -t UTF-8), or leave the file away",
             path.string(), at);
}

RecordSource::RecordSource(std::vector<std::filesystem::path> inputs, bool all_json,
                           const RecordPosition& start)
    : inputs_(std::move(inputs)), all_json_(all_json), position_(start) {}

bool RecordSource::next(Record& record) {
  for (; position_.input < static_cast<int64_t>(inputs_.size());
       ++position_.input, position_.offset = 0, position_.form = JsonElements::Form::detect, file_.reset()) {
    const std::filesystem::path& path = inputs_[static_cast<size_t>(position_.input)];
    record.is_json = all_json_ || path.extension() == ".jsonl";
    if (!file_) {
      file_ = std::make_unique<ReadFile>(path);
      elements_ = std::make_unique<JsonElements>(
          [file = file_.get()](int64_t offset, std::span<std::byte> out) {
            return file->read_some(offset, out);
          },
          path.string(), position_.offset, position_.form);
      if (record.is_json) {  // clean_text() looks at the others
        std::string head(kForeignFormatBytes, '\0');
        head.resize(static_cast<size_t>(file_->read_some(0, std::as_writable_bytes(std::span(head)))));
        refuse_foreign_format(head, path.string());
      }
    }
    if (record.is_json) {
      if (!elements_->next(record.bytes)) continue;
      position_.offset = elements_->element_offset();
      position_.form = elements_->form();
      record.end_offset = position_.offset + static_cast<int64_t>(record.bytes.size());
    } else {
      if (position_.offset > 0) continue;
      record.bytes.resize(static_cast<size_t>(file_->size()));
      file_->read(0, std::as_writable_bytes(std::span(record.bytes)));
      clean_text(record.bytes, path);
      record.end_offset = file_->size();
    }
    record.position = position_;
    record.place = fmt::format("{}: record {} at byte {}", path.string(), position_.number, position_.offset);
    ++position_.number;
    if (!record.is_json) position_.offset = 1;  // the one record of this file is given out
    return true;
  }
  return false;
}

}  // namespace sinklora
