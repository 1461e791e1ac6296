// Which tiles hold visible pairs, and which of them need a mask: kernels/attention_pattern.h, tile by tile.
// Within a sequence tokens are counted in int; offsets into memory are 64-bit.
#pragma once

#include "kernels/cuda/attention_internal.h"

namespace sinklora::cuda {

// The tile of a slot (attention_internal.h). All lanes of a warp ask together, for the same one: a step of
// the search reads 32 offsets at once, and one sequence takes no step.
struct SlotTile {
  int64_t sequence = 0, start;
  int length, first;  // of the sequence; the tile's first row, behind the end in an unused slot

  __device__ SlotTile(const int64_t* offsets, int64_t sequences, int64_t slot, int64_t size) {
    for (int64_t count = sequences; count > 1;) {  // it is one of `count` from `sequence` on
      const int64_t step = (count + 31) / 32, skipped = (threadIdx.x & 31) * step, at = sequence + skipped;
      const bool begun = skipped < count && slot_base(offsets[at], at, size) <= slot;
      const int64_t passed = (__popc(__ballot_sync(~0u, begun)) - 1) * step;
      sequence += passed;
      count = min(step, count - passed);
    }
    start = offsets[sequence];
    length = static_cast<int>(offsets[sequence + 1] - start);
    first = static_cast<int>((slot - slot_base(start, sequence, size)) * size);
  }
};

// The block of 128 queries that the forward and mma's dQ work on, later queries of a head first since they
// see more keys.
struct QueryBlock {
  int64_t start;
  int first, head, length, valid;

  __device__ explicit QueryBlock(const AttentionArguments<uint16_t>& a) {
    const auto slots = static_cast<unsigned>(forward_slots(a)),
               last = static_cast<unsigned>(slots_of(a, forward_tile)) - 1;
    const SlotTile tile(a.offsets, a.sequences, last - blockIdx.x % slots, forward_tile);
    head = static_cast<int>(blockIdx.x / slots);
    start = tile.start, first = tile.first, length = tile.length;
    valid = min(static_cast<int>(forward_tile), length - first);
  }
  __device__ bool empty() const { return valid <= 0; }
};

// Keys that one query sees: [0, low_end) and [begin, end).
struct RowBounds {
  int low_end, begin, end, unused;
  __device__ bool sees(int key) const { return key < low_end || (key >= begin && key < end); }
};
__device__ inline RowBounds row_bounds(const AttentionPattern& pattern, int head, int query, int length) {
  if (query >= length) return {0, 0, 0, 0};
  const RangePair keys = key_ranges(pattern, head, query, length);
  return {static_cast<int>(keys.first.end), static_cast<int>(keys.second.begin),
          static_cast<int>(keys.second.end), 0};
}
// Whether a query's second range lies behind the seam of a wrapped group, in its future; its first range is
// then its own past, not the sinks.
__device__ inline bool wraps(const RowBounds& keys, int query) { return keys.begin > query; }
// Sinks that a query sees outside its group: [0, sinks_outside).
__device__ inline int sinks_outside(const AttentionPattern& pattern, int head, int query, int length) {
  const RowBounds keys = row_bounds(pattern, head, query, length);
  return wraps(keys, query) ? 0 : keys.low_end;
}

// The keys of queries [first, last]: [0, low_end) and [begin, end), disjoint. A pair is visible without a
// look at its row when its key is below low_full or in [full_begin, full_end).
struct KeyIntervals {
  int low_end, begin, end;
  int low_full, full_begin, full_end;
  bool future;  // some query sees keys behind itself, through the seam of a wrapped group

  __device__ KeyIntervals(const AttentionPattern& pattern, int head, int first, int last, int length) {
    const RowBounds a = row_bounds(pattern, head, first, length), b = row_bounds(pattern, head, last, length);
    future = wraps(a, first);
    if (future) {
      low_end = last + 1, begin = a.begin, end = length;
      low_full = full_begin = full_end = 0;
    } else {
      low_end = b.low_end, begin = a.begin, end = last + 1;
      low_full = a.low_end, full_begin = b.begin, full_end = first + 1;
    }
    // Tiles reach behind low_end; none may reach into the second interval.
    if ((low_end + 127) / 128 * 128 > begin) low_end = low_full = begin = 0;
  }
  __device__ bool visible(int key_begin, int key_end) const {
    return key_end <= low_full || (key_begin >= full_begin && key_end <= full_end);
  }
};

// The query tiles (of query_tile rows) that see keys [first, last] of one group run, sinks outside it left
// out: tiles [0, before) and [begin, end). Rows [full_begin, full_end) see all of these keys.
struct QueryTiles {
  int before, begin, end;
  int full_begin, full_end;

  __device__ QueryTiles(const AttentionPattern& runs, int head, int first, int last, int length) {
    const RangePair of_last = query_ranges(runs, head, last, length);
    const int size = static_cast<int>(query_tile);
    before = (static_cast<int>(of_last.first.end) + size - 1) / size;
    begin = first / size;
    end = (static_cast<int>(of_last.second.end) + size - 1) / size;
    if (before >= begin) before = begin = 0;
    full_begin = last;
    full_end = static_cast<int>(query_ranges(runs, head, first, length).second.end);
  }
  __device__ int count() const { return before + end - begin; }
  __device__ int tile(int i) const { return i < before ? i : begin + i - before; }
};

// The inverse: the key tiles (of key_tile rows) that visit query tile `tile`, [low_begin, low_end) and
// [high_begin, high_end). They add to the tile's d_q by turns, the first key tile first.
struct KeyTiles {
  int low_begin, low_end, high_begin = 0, high_end = 0;

  __device__ KeyTiles(const AttentionPattern& runs, int head, int tile, int length) {
    const int size = static_cast<int>(key_tile), rows = static_cast<int>(query_tile);
    const int first = tile * rows, last = min(first + rows, length) - 1;
    const RowBounds keys = row_bounds(runs, head, first, length);
    low_end = last / size + 1;
    low_begin = wraps(keys, first) ? 0 : keys.begin / size;
    if (!wraps(keys, first)) return;
    high_begin = keys.begin / size, high_end = (length + size - 1) / size;
    if (high_begin < low_end) low_end = high_end, high_begin = high_end = 0;
  }
  __device__ int count() const { return low_end - low_begin + high_end - high_begin; }
  __device__ int turn_of(int key_tile_index) const {
    if (high_end > high_begin && key_tile_index >= high_begin)
      return low_end - low_begin + key_tile_index - high_begin;
    return key_tile_index - low_begin;
  }
};
// Whether a query tile has pairs with sinks outside its run.
__device__ inline bool tile_has_sinks(const AttentionPattern& pattern, int head, int tile, int length) {
  if (pattern.num_sinks == 0) return false;
  return sinks_outside(pattern, head, min((tile + 1) * static_cast<int>(query_tile), length) - 1, length) > 0;
}

// Where element (row, column) of a d_q tile lies in it: row-major, 16-byte chunks permuted so that
// accumulator fragments are written without bank conflicts. The same in shared and global memory.
template <int D>
__device__ inline int gradient_offset(int row, int column) {
  return row * D + ((((column >> 2) ^ ((row & 3) << 1)) << 2) | (column & 3));
}

}  // namespace sinklora::cuda
