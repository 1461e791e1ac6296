// Names that nobody can know: an adjective and a noun, as in "amber lantern".
#pragma once

#include <cstdint>
#include <string>

namespace sinklora {

inline constexpr int64_t kAdjectives = 80, kNouns = 80;
inline constexpr int64_t kWordPairs = kAdjectives * kNouns;

// Pair number `index`, in [0, kWordPairs): adjective index / kNouns and noun index % kNouns, with `between`
// in between.
std::string word_pair(int64_t index, char between);

}  // namespace sinklora
