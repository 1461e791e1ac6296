// Words of one text that have been tokenized already: natural text repeats most of its words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sinklora {

class WordCache {
 public:
  // Appends the ids of `word` to `ids`; `tokenize` appends those of a word that was not seen before.
  template <class Tokenize>
  void append(std::string_view word, std::vector<int32_t>& ids, Tokenize tokenize) {
    if (const auto found = words_.find(word); found != words_.end()) {
      const auto first = pool_.begin() + found->second.begin;
      ids.insert(ids.end(), first, first + found->second.count);
      return;
    }
    const size_t before = ids.size();
    tokenize(word, ids);
    if (word.size() > kMaxWordBytes || words_.size() == kMaxWords) return;
    words_.emplace(word,
                   Run{static_cast<uint32_t>(pool_.size()), static_cast<uint32_t>(ids.size() - before)});
    pool_.insert(pool_.end(), ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end());
  }

 private:
  static constexpr size_t kMaxWordBytes = 64, kMaxWords = size_t{1} << 16;
  struct Run {
    uint32_t begin, count;  // in the pool
  };
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, Run, Hash, std::equal_to<>> words_;
  std::vector<int32_t> pool_;
};

}  // namespace sinklora
