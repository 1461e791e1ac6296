// Tokenizers small enough to check by hand, and helpers for files.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "data/tokenizer.h"

namespace sinklora::test {

// Two equal letters in a row are one token (256 + letter), all other bytes are tokens of their own: merges,
// and so the seam between prompt and answer, can be seen.
class PairTokenizer : public Tokenizer {
 public:
  explicit PairTokenizer(int64_t calls_before_crash = INT64_MAX) : calls_left_(calls_before_crash) {
    vocab_size = 515;
    bos_id = 512, eos_id = 513, pad_id = 514;
    add_bos = true;
    kind = "pair";
    sha256 = std::string(64, 'c');
  }
  std::vector<int32_t> encode(std::string_view text, bool parse_special = false) const override {
    if (calls_left_-- <= 0) throw std::runtime_error("as if killed");
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      if (parse_special && (text.substr(i).starts_with("<s>") || text.substr(i).starts_with("</s>"))) {
        ids.push_back(text[i + 1] == 's' ? bos_id : eos_id);
        i = text.find('>', i);
        continue;
      }
      const int32_t letter = static_cast<unsigned char>(text[i]);
      const bool pair = i + 1 < text.size() && text[i + 1] == text[i];
      ids.push_back(pair ? 256 + letter : letter);
      i += pair;
    }
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool = false) const override {
    std::string text;
    for (const int32_t id : ids)
      if (id < 512) text += std::string(id < 256 ? 1 : 2, static_cast<char>(id % 256));
    return text;
  }
  int32_t id_of(std::string_view) const override { return -1; }
  std::string piece(int32_t id) const override {
    return id == bos_id ? "<s>" : id == eos_id ? "</s>" : decode(std::span(&id, 1));
  }

 private:
  mutable std::atomic<int64_t> calls_left_;
};

inline void write_file(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
}

inline std::string read_file(const std::filesystem::path& path) { return read_text(path, int64_t{1} << 30); }

// Content of every file below a folder, by name.
inline std::map<std::string, std::string> content(const std::filesystem::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files[std::filesystem::relative(entry, folder).string()] = read_file(entry);
  return files;
}

}  // namespace sinklora::test
