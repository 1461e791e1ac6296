// Who sees whom. The one definition of every attention pattern; the CPU and CUDA kernels, the tests and the
// docs use these functions and nothing else.
//
// A sequence has N tokens, counted from 0. Query i of head h sees key j when one of the (at most two) ranges
// of key_ranges() holds j; equivalently, key j is seen by the queries of query_ranges().
//
//   full      [0, i]
//   fixed     the queries' own group of `group_size` tokens, up to i
//   s2        fixed for the first half of the heads; groups shifted by half a group for the others (LongLoRA,
//             arXiv 2309.12307, in its released form: no wrap-around)
//   s2-wrap   as s2, but shifted heads roll the sequence, so that the first and last half group share a
//             group: the first half group sees the last one, its future (LongLoRA, Algorithm 1)
//   sf        SF-Attn (SinkLoRA, arXiv 2406.05678): only the last quarter of the heads stays shifted, and
//             every query sees the first `num_sinks` tokens of its sequence
#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace sinklora {

struct AttentionPattern {
  int64_t group_size = 0;          // tokens; 0: one group, i.e. full causal attention
  int64_t first_shifted_head = 0;  // query heads from here on are shifted by group_size / 2
  int64_t num_sinks = 0;           // the first tokens of a sequence, seen by every later query
  bool wrap = false;               // shifted heads wrap around, as torch.roll does
  friend bool operator==(const AttentionPattern&, const AttentionPattern&) = default;
};

struct Range {
  int64_t begin = 0, end = 0;  // [begin, end); empty when begin >= end
};
// Ascending and disjoint. `first` may be empty while `second` is not.
struct RangePair {
  Range first, second;
};

namespace pattern_detail {
SINKLORA_HOST_DEVICE inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SINKLORA_HOST_DEVICE inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
}  // namespace pattern_detail

// Tokens by which `head` is shifted.
SINKLORA_HOST_DEVICE inline int64_t head_shift(const AttentionPattern& p, int64_t head) {
  return head >= p.first_shifted_head ? p.group_size / 2 : 0;
}

// The group of token t is [group_begin, group_end) without wrap-around: groups [0, d), [d, d + G), [d + G, d
// + 2G) ...
SINKLORA_HOST_DEVICE inline int64_t group_begin(const AttentionPattern& p, int64_t shift, int64_t t) {
  if (p.group_size == 0 || t < shift) return 0;
  return shift + (t - shift) / p.group_size * p.group_size;
}
SINKLORA_HOST_DEVICE inline int64_t group_end(const AttentionPattern& p, int64_t shift, int64_t t,
                                              int64_t length) {
  if (p.group_size == 0) return length;
  if (t < shift) return pattern_detail::least(shift, length);
  return pattern_detail::least(shift + ((t - shift) / p.group_size + 1) * p.group_size, length);
}

// With wrap-around: the rolled group that holds the seam between token length - 1 and token 0 begins at this
// token, counted in the unrolled sequence; length when the seam is a group border (no token wraps), and a
// value below length otherwise. `shift` < length.
SINKLORA_HOST_DEVICE inline int64_t seam_group_begin(const AttentionPattern& p, int64_t shift,
                                                     int64_t length) {
  // Rolled position r holds token (r + shift) mod length; the seam lies before rolled position length -
  // shift.
  return pattern_detail::least((length - shift) / p.group_size * p.group_size + shift, length);
}

SINKLORA_HOST_DEVICE inline RangePair key_ranges(const AttentionPattern& p, int64_t head, int64_t query,
                                                 int64_t length) {
  int64_t shift = head_shift(p, head);
  int64_t begin = 0;
  if (p.wrap && shift > 0) {
    shift %= length;
    if (query < shift) {
      const int64_t rolled = query - shift + length;  // the group of the rolled position, back in tokens
      const int64_t from = rolled / p.group_size * p.group_size + shift;
      if (from < length)
        return {{0, query + 1}, {from, length}};  // its own past, and the future behind the seam
      begin = from - length;
    } else {
      begin = shift + (query - shift) / p.group_size * p.group_size;
    }
  } else {
    begin = group_begin(p, shift, query);
  }
  return {{0, pattern_detail::least(p.num_sinks, begin)}, {begin, query + 1}};
}

SINKLORA_HOST_DEVICE inline RangePair query_ranges(const AttentionPattern& p, int64_t head, int64_t key,
                                                   int64_t length) {
  int64_t shift = head_shift(p, head);
  Range before{0, 0};  // queries before the key that see it through the seam
  int64_t end = 0;
  if (p.wrap && shift > 0) {
    shift %= length;
    const int64_t seam = seam_group_begin(p, shift, length);
    // Tokens of the seam's group in front of it: [0, wrapped).
    const int64_t wrapped = pattern_detail::least(seam + p.group_size - length, shift);
    if (key < shift) {
      const int64_t rolled = key - shift + length;
      end = pattern_detail::least((rolled / p.group_size + 1) * p.group_size + shift - length, shift);
    } else {
      end = pattern_detail::least(shift + ((key - shift) / p.group_size + 1) * p.group_size, length);
      if (key >= seam && wrapped > 0) before.end = wrapped;
    }
  } else {
    end = group_end(p, shift, key, length);
  }
  if (key < p.num_sinks) end = length;
  return {before, {key, end}};
}

SINKLORA_HOST_DEVICE inline bool visible(const AttentionPattern& p, int64_t head, int64_t query, int64_t key,
                                         int64_t length) {
  const RangePair keys = key_ranges(p, head, query, length);
  return (key >= keys.first.begin && key < keys.first.end) ||
         (key >= keys.second.begin && key < keys.second.end);
}

}  // namespace sinklora
