// Attention, flash-style (Dao, arXiv 2307.08691): T x T is never stored.
//
// The queries of a head are cut into blocks whose key ranges begin alike; a block walks over its at most two
// ranges in tiles of keys, so that the work is that of the visible pairs, plus at most a triangle of half a
// block per block. Forward: each (sequence, head, block) is a piece of work of its own; 2 products per tile,
// running maximum and sum. Backward: 5 products per tile (scores again, d_p, d_v, d_q, d_k). A piece is a run
// of blocks of one head with about kPiecePairs pairs; it owns its d_q and adds its d_k and d_v, summed in the
// thread's memory, to those of the KV head when all pieces before it have done so: one order of additions,
// whatever the threads do. FLOPs: 4 D per visible pair and head forward, 10 D backward.
#include <omp.h>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vector_math.h"

namespace sinklora {
namespace {

constexpr int64_t kBlock = 64;         // queries
constexpr int64_t kForwardTile = 512;  // keys; a tile of scores stays in the second-level cache
constexpr int64_t kBackwardTile = 256;
constexpr int64_t kPiecePairs = 64 * 1024;
// Less work than this stays on one thread. A block's products are at most twice its visible pairs, hence of a
// size that OpenBLAS leaves on one thread, too.
constexpr int64_t kSerialWork = kSerialGemm / 2;
constexpr Layout kPlain = Layout::plain, kTransposed = Layout::transposed;

bool empty(const Range& range) { return range.begin >= range.end; }
int64_t length_of(const Range& range) { return empty(range) ? 0 : range.end - range.begin; }
Range overlap(const Range& a, const Range& b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }
Range hull(const Range& a, const Range& b) {
  if (empty(a)) return b;
  if (empty(b)) return a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

struct Block {
  Range queries;
  RangePair keys;  // hulls of the queries' ranges: disjoint, for within a block each range begins at one key
  int64_t pairs = 0;  // visible ones
};

std::vector<Block> blocks_of(const AttentionPattern& pattern, int64_t head, int64_t length) {
  std::vector<Block> blocks;
  for (int64_t query = 0; query < length; ++query) {
    const RangePair keys = key_ranges(pattern, head, query, length);
    const int64_t pairs = length_of(keys.first) + length_of(keys.second);
    if (!blocks.empty()) {
      Block& last = blocks.back();
      const bool alike = empty(last.keys.first) == empty(keys.first) &&
                         (empty(keys.first) || last.keys.first.begin == keys.first.begin) &&
                         last.keys.second.begin == keys.second.begin;
      if (alike && length_of(last.queries) < kBlock) {
        last.queries.end = query + 1;
        last.keys = {hull(last.keys.first, keys.first), hull(last.keys.second, keys.second)};
        last.pairs += pairs;
        continue;
      }
    }
    blocks.push_back({{query, query + 1}, keys, pairs});
  }
  return blocks;
}

// Heads of one shift have the same blocks.
class BlockTable {
 public:
  BlockTable(const SequenceView& sequences, const AttentionPattern& pattern, int64_t tokens)
      : pattern_(pattern) {
    const auto* const offsets = sequences.offsets.as<int64_t>();
    if (offsets[0] != 0 || offsets[sequences.count] != tokens)
      fail_internal("attention: sequences cover tokens [{}, {}) of {}", offsets[0], offsets[sequences.count],
                    tokens);
    for (int64_t s = 0; s < sequences.count; ++s) {
      const int64_t length = offsets[s + 1] - offsets[s];
      if (length < 0 || length > sequences.max_length)
        fail_internal("attention: sequence {} has {} tokens, wanted 0 to {}", s, length,
                      sequences.max_length);
      offsets_.push_back(offsets[s]);
      lengths_.push_back(length);
      int64_t most = 0;
      for (const int64_t head : {int64_t{0}, pattern.first_shifted_head}) {
        blocks_.push_back(blocks_of(pattern, head, length));
        int64_t pairs = 0;
        for (const Block& block : blocks_.back()) pairs += block.pairs;
        most = std::max(most, pairs);
      }
      pairs_ += most;
    }
  }
  int64_t sequences() const { return static_cast<int64_t>(offsets_.size()); }
  int64_t offset(int64_t sequence) const { return offsets_[static_cast<size_t>(sequence)]; }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  const std::vector<Block>& blocks(int64_t sequence, int64_t head) const {
    return blocks_[static_cast<size_t>(2 * sequence + (head_shift(pattern_, head) > 0 ? 1 : 0))];
  }
  int64_t pairs() const { return pairs_; }  // of the head that sees more
  const AttentionPattern& pattern() const { return pattern_; }

 private:
  AttentionPattern pattern_;
  int64_t pairs_ = 0;
  std::vector<int64_t> offsets_, lengths_;
  std::vector<std::vector<Block>> blocks_;
};

struct Shape {
  int64_t heads, group, head_dim;  // group: query heads per KV head
};

// Calls visit(keys of the tile, which of the two ranges) over all tiles of a block, ascending.
template <class Visit>
void for_each_tile(const Block& block, int64_t tile, Visit&& visit) {
  for (const bool second : {false, true}) {
    const Range all = second ? block.keys.second : block.keys.first;
    for (int64_t begin = all.begin; begin < all.end; begin += tile)
      visit(Range{begin, std::min(begin + tile, all.end)}, second);
  }
}

// Which columns of a tile a query sees.
Range visible_columns(const RangePair& keys, const Range& tile, bool second) {
  const Range seen = overlap(second ? keys.second : keys.first, tile);
  return empty(seen) ? Range{} : Range{seen.begin - tile.begin, seen.end - tile.begin};
}

// ---- forward ----

// Scores become exp(score - maximum), 0 where unseen; returns their sum.
template <class T>
T exponentiate(T* scores, const Range& seen, int64_t width, T maximum) {
  T sum = 0;
  std::fill(scores, scores + seen.begin, T{0});
#pragma omp simd reduction(+ : sum)
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    scores[j] = vector_exp(scores[j] - maximum);
    sum += scores[j];
  }
  std::fill(scores + seen.end, scores + width, T{0});
  return sum;
}

template <class T>
T largest(const T* values, const Range& range) {
  T most = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : most)
  for (int64_t j = range.begin; j < range.end; ++j) most = values[j] > most ? values[j] : most;
  return most;
}

template <class T>
void scale_row(T* row, T factor, int64_t count) {
#pragma omp simd
  for (int64_t d = 0; d < count; ++d) row[d] *= factor;
}

// All matrices begin at the sequence's first token and the head's first column.
template <class T>
void forward_block(const Block& block, const RangePair* keys_of_query, Matrix<T> out, T* lse, Matrix<T> q,
                   Matrix<T> k, Matrix<T> v, int64_t head_dim, T* scores) {
  const int64_t rows = length_of(block.queries), first = block.queries.begin;
  const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  T most[kBlock], sum[kBlock];
  std::fill_n(most, kBlock, -std::numeric_limits<T>::infinity());
  std::fill_n(sum, kBlock, T{0});
  bool started = false;
  for_each_tile(block, kForwardTile, [&](const Range& tile, bool second) {
    const int64_t width = length_of(tile);
    const Matrix<T> s{scores, width};
    gemm_on_this_thread<T>(kPlain, kTransposed, rows, width, head_dim, scale, q.at(first, 0),
                           k.at(tile.begin, 0), 0, s);
    for (int64_t r = 0; r < rows; ++r) {
      const Range seen = visible_columns(keys_of_query[r], tile, second);
      const T now = std::max(most[r], largest(s.row(r), seen));
      if (started && now > most[r]) {
        const T factor = vector_exp(most[r] - now);
        sum[r] *= factor;
        scale_row(out.row(first + r), factor, head_dim);
      }
      most[r] = now;
      sum[r] += exponentiate(s.row(r), seen, width, now);
    }
    gemm_on_this_thread<T>(kPlain, kPlain, rows, head_dim, width, 1, s, v.at(tile.begin, 0), started ? 1 : 0,
                           out.at(first, 0));
    started = true;
  });
  for (int64_t r = 0; r < rows; ++r) {
    scale_row(out.row(first + r), T{1} / sum[r], head_dim);
    lse[first + r] = most[r] + std::log(sum[r]);
  }
}

struct ForwardPiece {
  int64_t sequence, head;
  const Block* block;
};

template <class T>
void forward(Matrix<T> out, Matrix<T> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v, const BlockTable& table,
             const Shape& shape, Scratch& scratch) {
  std::vector<ForwardPiece> pieces;
  for (int64_t s = 0; s < table.sequences(); ++s)
    for (int64_t head = 0; head < shape.heads; ++head)
      for (const Block& block : table.blocks(s, head)) pieces.push_back({s, head, &block});
  // The largest first, so that the threads end together.
  std::stable_sort(pieces.begin(), pieces.end(), [](const ForwardPiece& a, const ForwardPiece& b) {
    return a.block->pairs > b.block->pairs;
  });
  constexpr int64_t kScores = kBlock * kForwardTile;
  T* const scores = scratch.take<T>(omp_get_max_threads() * kScores);
  const auto count = static_cast<int64_t>(pieces.size());
#pragma omp parallel for schedule(dynamic, 1) if (table.pairs() * shape.heads * shape.head_dim > kSerialWork)
  for (int64_t i = 0; i < count; ++i) {
    const auto& [sequence, head, block] = pieces[static_cast<size_t>(i)];
    const int64_t token = table.offset(sequence), column = head * shape.head_dim;
    const int64_t kv_column = head / shape.group * shape.head_dim;
    RangePair keys[kBlock];
    for (int64_t r = 0; r < length_of(block->queries); ++r)
      keys[r] = key_ranges(table.pattern(), head, block->queries.begin + r, table.length(sequence));
    forward_block(*block, keys, out.at(token, column), lse.row(head) + token, q.at(token, column),
                  k.at(token, kv_column), v.at(token, kv_column), shape.head_dim,
                  scores + omp_get_thread_num() * kScores);
  }
}

// ---- backward ----

template <class T>
struct BackwardHead {
  Matrix<T> d_q, d_out, q, k, v, out;  // from the sequence's first token and the head's first column
  const T* lse;
  int64_t head_dim;
};

// Adds to d_k and d_v, [length, D], and writes the block's d_q.
template <class T>
void backward_block(const BackwardHead<T>& head, const Block& block, const RangePair* keys_of_query,
                    Matrix<T> d_k, Matrix<T> d_v, T* p_memory, T* ds_memory) {
  const int64_t rows = length_of(block.queries), first = block.queries.begin, head_dim = head.head_dim;
  const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const Matrix<T> q = head.q.at(first, 0), d_out = head.d_out.at(first, 0);
  T delta[kBlock];  // d_out . out = sum_j p_ij d_p_ij
  for (int64_t r = 0; r < rows; ++r) {
    const T *const a = d_out.row(r), *const b = head.out.row(first + r);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < head_dim; ++d) sum += a[d] * b[d];
    delta[r] = sum;
  }
  bool started = false;
  for_each_tile(block, kBackwardTile, [&](const Range& tile, bool second) {
    const int64_t width = length_of(tile);
    const Matrix<T> p{p_memory, width}, ds{ds_memory, width}, k = head.k.at(tile.begin, 0);
    gemm_on_this_thread<T>(kPlain, kTransposed, rows, width, head_dim, scale, q, k, 0, p);
    gemm_on_this_thread<T>(kPlain, kTransposed, rows, width, head_dim, 1, d_out, head.v.at(tile.begin, 0), 0,
                           ds);
    for (int64_t r = 0; r < rows; ++r) {
      const Range seen = visible_columns(keys_of_query[r], tile, second);
      T *const p_row = p.row(r), *const ds_row = ds.row(r);
      exponentiate(p_row, seen, width, head.lse[first + r]);
      std::fill(ds_row, ds_row + seen.begin, T{0});
#pragma omp simd
      for (int64_t j = seen.begin; j < seen.end; ++j) ds_row[j] = p_row[j] * (ds_row[j] - delta[r]) * scale;
      std::fill(ds_row + seen.end, ds_row + width, T{0});
    }
    gemm_on_this_thread<T>(kTransposed, kPlain, width, head_dim, rows, 1, p, d_out, 1, d_v.at(tile.begin, 0));
    gemm_on_this_thread<T>(kTransposed, kPlain, width, head_dim, rows, 1, ds, q, 1, d_k.at(tile.begin, 0));
    gemm_on_this_thread<T>(kPlain, kPlain, rows, head_dim, width, 1, ds, k, started ? 1 : 0,
                           head.d_q.at(first, 0));
    started = true;
  });
}

struct BackwardPiece {
  int64_t sequence, head;
  const Block *begin, *end;
  RangePair touched;  // keys, disjoint
};

std::vector<BackwardPiece> backward_pieces(const BlockTable& table, int64_t heads) {
  std::vector<BackwardPiece> pieces;
  for (int64_t s = 0; s < table.sequences(); ++s) {
    for (int64_t head = 0; head < heads; ++head) {
      const std::vector<Block>& blocks = table.blocks(s, head);
      for (size_t i = 0; i < blocks.size();) {
        BackwardPiece piece{s, head, &blocks[i], &blocks[i], {}};
        for (int64_t pairs = 0; i < blocks.size() && pairs < kPiecePairs; pairs += blocks[i++].pairs) {
          ++piece.end;
          piece.touched = {hull(piece.touched.first, blocks[i].keys.first),
                           hull(piece.touched.second, blocks[i].keys.second)};
        }
        if (!empty(overlap(piece.touched.first, piece.touched.second)))
          piece.touched = {{}, hull(piece.touched.first, piece.touched.second)};
        pieces.push_back(piece);
      }
    }
  }
  return pieces;
}

template <class T>
void add_rows(Matrix<T> to, Matrix<T> from, const Range& rows, int64_t columns) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    T *const target = to.row(r), *const source = from.row(r);
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) target[c] += source[c];
  }
}

template <class T>
void backward(const BackwardHead<T>& all, Matrix<T> d_k, Matrix<T> d_v, Matrix<T> lse,
              const BlockTable& table, const Shape& shape, int64_t max_length, Scratch& scores,
              Scratch& sums) {
  const std::vector<BackwardPiece> pieces = backward_pieces(table, shape.heads);
  const int64_t head_dim = shape.head_dim, tile = kBlock * kBackwardTile, keys_size = max_length * head_dim;
  const int64_t threads = omp_get_max_threads();
  T* const tiles = scores.take<T>(threads * 2 * tile);
  T* const all_sums = sums.take<T>(threads * 2 * keys_size);
  const auto count = static_cast<int64_t>(pieces.size());
#pragma omp parallel for ordered schedule(dynamic, \
                                          1) if (table.pairs() * shape.heads * shape.head_dim > kSerialWork)
  for (int64_t i = 0; i < count; ++i) {
    const BackwardPiece& piece = pieces[static_cast<size_t>(i)];
    const int64_t token = table.offset(piece.sequence), column = piece.head * head_dim;
    const int64_t kv_column = piece.head / shape.group * head_dim, thread = omp_get_thread_num();
    const BackwardHead<T> head{all.d_q.at(token, column),   all.d_out.at(token, column),
                               all.q.at(token, column),     all.k.at(token, kv_column),
                               all.v.at(token, kv_column),  all.out.at(token, column),
                               lse.row(piece.head) + token, head_dim};
    const Matrix<T> own_k{all_sums + thread * 2 * keys_size, head_dim}, own_v = own_k.at(max_length, 0);
    for (const Range& keys : {piece.touched.first, piece.touched.second}) {
      std::fill_n(own_k.row(keys.begin), length_of(keys) * head_dim, T{0});
      std::fill_n(own_v.row(keys.begin), length_of(keys) * head_dim, T{0});
    }
    for (const Block* block = piece.begin; block != piece.end; ++block) {
      RangePair keys[kBlock];
      for (int64_t r = 0; r < length_of(block->queries); ++r)
        keys[r] =
            key_ranges(table.pattern(), piece.head, block->queries.begin + r, table.length(piece.sequence));
      T* const own_tiles = tiles + thread * 2 * tile;
      backward_block(head, *block, keys, own_k, own_v, own_tiles, own_tiles + tile);
    }
#pragma omp ordered
    for (const Range& keys : {piece.touched.first, piece.touched.second}) {
      add_rows(d_k.at(token, kv_column), own_k, keys, head_dim);
      add_rows(d_v.at(token, kv_column), own_v, keys, head_dim);
    }
  }
}

Shape check(DType compute, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse,
            const SequenceView& sequences, const AttentionPattern& pattern, int64_t head_dim) {
  const int64_t tokens = q.rows();
  if (head_dim <= 0 || q.row_size() % head_dim != 0 || k.row_size() % head_dim != 0)
    fail_internal("attention: rows of {} and {} elements do not hold heads of {}", q.row_size(), k.row_size(),
                  head_dim);
  const int64_t heads = q.row_size() / head_dim, kv_heads = k.row_size() / head_dim;
  if (kv_heads == 0 || heads % kv_heads != 0)
    fail_internal("attention: {} query heads do not share {} KV heads evenly", heads, kv_heads);
  if (pattern.group_size < 0 || pattern.num_sinks < 0)
    fail_internal("attention: groups of {} tokens and {} sinks, wanted no negative number",
                  pattern.group_size, pattern.num_sinks);
  expect(q, "attention q", compute, tokens, heads * head_dim);
  expect(k, "attention k", compute, tokens, kv_heads * head_dim);
  expect(v, "attention v", compute, tokens, kv_heads * head_dim);
  expect(lse, "attention lse", compute == DType::f64 ? DType::f64 : DType::f32, heads, tokens);
  expect(sequences.offsets, "attention offsets", DType::i64, sequences.count + 1, 1);
  // Products run inside parallel regions, which an error must not leave: what they could refuse is refused
  // here.
  for (const Tensor* tensor : {&q, &k, &v})
    narrow<int32_t>(tensor->row_stride, "attention: distance of two rows");
  return {heads, heads / kv_heads, head_dim};
}

}  // namespace

void CpuOps::attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                               const Tensor& v, const SequenceView& sequences,
                               const AttentionPattern& pattern, int64_t head_dim) {
  const Shape shape = check(compute_, q, k, v, lse, sequences, pattern, head_dim);
  expect(out, "attention out", compute_, q.rows(), q.row_size());
  narrow<int32_t>(out.row_stride, "attention: distance of two rows");
  const BlockTable table(sequences, pattern, q.rows());
  run([&]<class T>(T) {
    forward<T>(matrix<T>(out), matrix<T>(lse), matrix<T>(q), matrix<T>(k), matrix<T>(v), table, shape,
               activations_);
  });
}

void CpuOps::attention_backward(const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& d_out,
                                const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                const Tensor& lse, const SequenceView& sequences,
                                const AttentionPattern& pattern, int64_t head_dim) {
  const Shape shape = check(compute_, q, k, v, lse, sequences, pattern, head_dim);
  for (const auto& [tensor, like, name] :
       {std::tuple{&d_q, &q, "attention d_q"}, std::tuple{&d_k, &k, "attention d_k"},
        std::tuple{&d_v, &v, "attention d_v"}, std::tuple{&d_out, &q, "attention d_out"},
        std::tuple{&out, &q, "attention out"}}) {
    expect(*tensor, name, compute_, like->rows(), like->row_size());
    narrow<int32_t>(tensor->row_stride, "attention: distance of two rows");
  }
  const BlockTable table(sequences, pattern, q.rows());
  zero(d_k);
  zero(d_v);
  run([&]<class T>(T) {
    const BackwardHead<T> all{matrix<T>(d_q), matrix<T>(d_out), matrix<T>(q), matrix<T>(k),
                              matrix<T>(v),   matrix<T>(out),   nullptr,      head_dim};
    backward<T>(all, matrix<T>(d_k), matrix<T>(d_v), matrix<T>(lse), table, shape, sequences.max_length,
                activations_, sums_);
  });
}

}  // namespace sinklora
