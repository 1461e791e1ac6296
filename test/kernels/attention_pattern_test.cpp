// kernels/attention_pattern.h against literal constructions: LongLoRA's roll, view, mask and roll back; its
// cumulative sequence lengths; and the closed form of SF-Attn. Over all small sizes.
#include "kernels/attention_pattern.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

using namespace sinklora;

namespace {

using Mask = std::vector<std::vector<bool>>;  // [query][key]

Mask nothing(int64_t length) {
  return Mask(static_cast<size_t>(length), std::vector<bool>(static_cast<size_t>(length)));
}

// torch.roll(tokens, -shift), view as groups of G, causal inside each group, roll back.
Mask roll_view_mask(int64_t length, int64_t group_size, int64_t shift) {
  std::vector<size_t> tokens(static_cast<size_t>(length));
  std::iota(tokens.begin(), tokens.end(), size_t{0});
  std::rotate(tokens.begin(), tokens.begin() + shift % length, tokens.end());
  Mask mask = nothing(length);
  for (int64_t begin = 0; begin < length; begin += group_size)
    for (int64_t i = begin; i < std::min(begin + group_size, length); ++i)
      for (int64_t j = begin; j <= i; ++j)
        mask[tokens[static_cast<size_t>(i)]][tokens[static_cast<size_t>(j)]] = true;
  return mask;
}

// Causal attention of variable length inside the pieces between cumulative lengths: 0, shift, shift + G, ...,
// N.
Mask cumulative_lengths_mask(int64_t length, int64_t group_size, int64_t shift) {
  std::vector<int64_t> cuts{0};
  for (int64_t cut = shift > 0 ? shift : group_size; cut < length; cut += group_size) cuts.push_back(cut);
  cuts.push_back(length);
  Mask mask = nothing(length);
  for (size_t piece = 0; piece + 1 < cuts.size(); ++piece)
    for (int64_t i = cuts[piece]; i < cuts[piece + 1]; ++i)
      for (int64_t j = cuts[piece]; j <= i; ++j) mask[static_cast<size_t>(i)][static_cast<size_t>(j)] = true;
  return mask;
}

// M = causal and (same group, or the key is a sink), group of t = floor((t + G - d) / G) for a shift d > 0.
Mask closed_form_mask(int64_t length, int64_t group_size, int64_t shift, int64_t sinks) {
  const auto group = [&](int64_t t) {
    return shift > 0 ? (t + group_size - shift) / group_size : t / group_size;
  };
  Mask mask = nothing(length);
  for (int64_t i = 0; i < length; ++i)
    for (int64_t j = 0; j <= i; ++j)
      mask[static_cast<size_t>(i)][static_cast<size_t>(j)] = group(i) == group(j) || j < sinks;
  return mask;
}

void add_sinks(Mask& mask, int64_t sinks) {
  for (size_t i = 0; i < mask.size(); ++i)
    for (size_t j = 0; j <= i && j < static_cast<size_t>(sinks); ++j) mask[i][j] = true;
}

// The first disagreement in words, or nothing.
std::string compare(const AttentionPattern& p, int64_t head, const Mask& mask) {
  const auto length = static_cast<int64_t>(mask.size());
  for (int64_t i = 0; i < length; ++i)
    for (int64_t j = 0; j < length; ++j)
      if (visible(p, head, i, j, length) != mask[static_cast<size_t>(i)][static_cast<size_t>(j)])
        return "N " + std::to_string(length) + ", G " + std::to_string(p.group_size) + ", sinks " +
               std::to_string(p.num_sinks) + ", wrap " + std::to_string(p.wrap) + ", head " +
               std::to_string(head) + ": query " + std::to_string(i) + ", key " + std::to_string(j);
  return "";
}

// Ascending, disjoint, inside the sequence; query_ranges the exact transpose of key_ranges.
std::string compare_ranges(const AttentionPattern& p, int64_t head, int64_t length) {
  const auto holds = [](const Range& r, int64_t t) { return r.begin <= t && t < r.end; };
  const auto sound = [&](const RangePair& pair) {
    const auto inside = [&](const Range& r) { return r.begin >= r.end || (r.begin >= 0 && r.end <= length); };
    const bool both = pair.first.begin < pair.first.end && pair.second.begin < pair.second.end;
    return inside(pair.first) && inside(pair.second) && (!both || pair.first.end <= pair.second.begin);
  };
  for (int64_t i = 0; i < length; ++i) {
    const RangePair keys = key_ranges(p, head, i, length), queries = query_ranges(p, head, i, length);
    if (!sound(keys) || !sound(queries)) return "ranges of token " + std::to_string(i);
    for (int64_t j = 0; j < length; ++j) {
      const RangePair seen_by = query_ranges(p, head, j, length);
      if ((holds(keys.first, j) || holds(keys.second, j)) !=
          (holds(seen_by.first, i) || holds(seen_by.second, i)))
        return "transpose at query " + std::to_string(i) + ", key " + std::to_string(j);
    }
  }
  return "";
}

// Calls check(length, pattern without and with wrap to be completed) for every small size.
template <class Check>
void for_small_sizes(Check&& check) {
  constexpr int64_t kHeads = 4;
  for (int64_t length = 1; length <= 40; ++length)
    for (int64_t group_size = 2; group_size <= 20; group_size += 2)
      for (int64_t sinks = 0; sinks <= 6; ++sinks)
        for (const int64_t first_shifted : {kHeads, kHeads * 3 / 4, kHeads / 2})
          for (const int64_t head : {int64_t{0}, first_shifted - 1, first_shifted, kHeads - 1})
            if (head < kHeads) check(length, AttentionPattern{group_size, first_shifted, sinks, false}, head);
}

}  // namespace

TEST_CASE(
    "attention pattern: fixed, s2 and sf are the pieces between cumulative lengths, and the closed form") {
  for_small_sizes([](int64_t length, const AttentionPattern& p, int64_t head) {
    const int64_t shift = head < p.first_shifted_head ? 0 : p.group_size / 2;
    Mask mask = cumulative_lengths_mask(length, p.group_size, shift);
    add_sinks(mask, p.num_sinks);
    REQUIRE(compare(p, head, mask) == "");
    REQUIRE(compare(p, head, closed_form_mask(length, p.group_size, shift, p.num_sinks)) == "");
    REQUIRE(compare_ranges(p, head, length) == "");
  });
}

TEST_CASE("attention pattern: s2-wrap is roll, view, causal mask, roll back") {
  for_small_sizes([](int64_t length, AttentionPattern p, int64_t head) {
    p.wrap = true;
    const int64_t shift = head < p.first_shifted_head ? 0 : p.group_size / 2;
    Mask mask = roll_view_mask(length, p.group_size, shift);
    add_sinks(mask, p.num_sinks);
    REQUIRE(compare(p, head, mask) == "");
    REQUIRE(compare_ranges(p, head, length) == "");
  });
}

TEST_CASE(
    "attention pattern: only the corner of s2-wrap sees the future, and nothing else tells it from s2") {
  for_small_sizes([](int64_t length, const AttentionPattern& p, int64_t head) {
    AttentionPattern wrapped = p;
    wrapped.wrap = true;
    const bool divides = length % p.group_size == 0;
    int64_t corner = 0;
    for (int64_t i = 0; i < length; ++i)
      for (int64_t j = 0; j < length; ++j) {
        const bool plain = visible(p, head, i, j, length), with_wrap = visible(wrapped, head, i, j, length);
        if (plain) REQUIRE(j <= i);
        if (with_wrap && j > i) REQUIRE(i < head_shift(p, head));
        if (divides && plain != with_wrap) {
          REQUIRE(j > i);
          ++corner;
        }
      }
    if (divides) {
      const int64_t shift = head_shift(p, head);
      REQUIRE(corner == shift * shift);
    }
  });
}

TEST_CASE("attention pattern: no groups is full causal attention, whatever else is set") {
  for (int64_t length = 1; length <= 40; ++length)
    for (const bool wrap : {false, true})
      for (const int64_t sinks : {0, 4, 50})
        for (const int64_t head : {0, 3}) {
          const AttentionPattern p{0, 2, sinks, wrap};
          REQUIRE(compare(p, head, closed_form_mask(length, length, 0, 0)) == "");
          REQUIRE(compare_ranges(p, head, length) == "");
        }
}

TEST_CASE(
    "attention pattern: the comparison sees a mask that is wrong in one pair, and a shift that is wrong by "
    "one") {
  const AttentionPattern p{8, 2, 4, false};
  Mask mask = closed_form_mask(30, 8, 4, 4);
  REQUIRE(compare(p, 3, mask) == "");
  mask[20][2] = false;
  CHECK(compare(p, 3, mask) == "N 30, G 8, sinks 4, wrap 0, head 3: query 20, key 2");
  CHECK(compare(p, 3, closed_form_mask(30, 8, 5, 4)) != "");
  AttentionPattern wrapped{8, 2, 0, true};
  CHECK(compare(wrapped, 3, roll_view_mask(30, 8, 4)) == "");
  CHECK(compare(wrapped, 3, roll_view_mask(30, 8, 3)) != "");
  CHECK(compare(wrapped, 3, cumulative_lengths_mask(30, 8, 4)) != "");
}
