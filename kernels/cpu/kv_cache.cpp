// Attention of a few new tokens to a cache, and what the cache keeps.
//
// Attention: a piece is some queries of one KV head, all its query heads side by side, against all keys at
// once: a matrix of scores [rows, keys] of bounded size, softmax, product with v. Mass: a piece is a tile of
// keys, against all queries in turn, scores computed again and exp(score - lse) added up: one order of
// additions for every key. FLOPs a pair and head: 4 D, and 2 D for the mass.
#include <omp.h>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/vector_math.h"

namespace sinklora {
namespace {

constexpr int64_t kMostRows = 64;         // of a matrix of scores,
constexpr int64_t kMostScores = 1 << 18;  // unless the query heads of one token have more
constexpr int64_t kMassTile = 256;        // keys
constexpr Layout kPlain = Layout::plain, kTransposed = Layout::transposed;

struct Shape {
  int64_t tokens, cached, heads, kv_heads, head_dim;
  int64_t group() const { return heads / kv_heads; }
  int64_t keys() const { return cached + tokens; }
  // More than this and the work is shared out; it bounds every product as well.
  bool parallel() const { return tokens * keys() * heads * head_dim > kSerialGemm; }
};

// The cached keys of a KV head and the new ones, from its first column.
template <class T>
struct Keys {
  Matrix<T> cached, added;
};

template <class T>
struct Arguments {
  Matrix<T> out, lse, q, k, v, cached_k, cached_v, mass, new_mass;
  Matrix<T> turned;  // [Hkv * keys, D]: after RoPE, where they come before it
  Shape shape;

  Keys<T> keys(int64_t kv_head) const {
    const int64_t column = kv_head * shape.head_dim, first = kv_head * shape.keys();
    if (turned.data) return {turned.at(first, 0), turned.at(first + shape.cached, 0)};
    return {cached_k.at(0, column), k.at(0, column)};
  }
  Keys<T> values(int64_t kv_head) const {
    return {cached_v.at(0, kv_head * shape.head_dim), v.at(0, kv_head * shape.head_dim)};
  }
  T scale() const { return static_cast<T>(1.0 / std::sqrt(static_cast<double>(shape.head_dim))); }
};

template <class T>
void turn(T* to, const T* from, const T* cosine, const T* sine, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    to[i] = from[i] * cosine[i] - from[half + i] * sine[i];
    to[half + i] = from[half + i] * cosine[i] + from[i] * sine[i];
  }
}

// All keys of all heads after RoPE.
template <class T>
void turn_keys(const Arguments<T>& a, const Tensor& ranks, Matrix<T> cosines, Matrix<T> sines) {
  const Shape& s = a.shape;
#pragma omp parallel for collapse(2) if (s.parallel())
  for (int64_t g = 0; g < s.kv_heads; ++g)
    for (int64_t j = 0; j < s.keys(); ++j) {
      const bool old = j < s.cached;
      const int64_t angle = old ? matrix<int32_t>(ranks).row(g)[j] : j;
      turn(a.turned.row(g * s.keys() + j), (old ? a.cached_k.row(j) : a.k.row(j - s.cached)) + g * s.head_dim,
           cosines.row(angle), sines.row(angle), s.head_dim / 2);
    }
}

// The q of tokens [first, first + tokens) and the query heads of one KV head, a row each.
template <class T>
void gather_queries(Matrix<T> to, const Arguments<T>& a, int64_t kv_head, int64_t first, int64_t tokens) {
  const int64_t group = a.shape.group(), width = group * a.shape.head_dim;
  for (int64_t t = 0; t < tokens; ++t)
    std::copy_n(a.q.row(first + t) + kv_head * width, width, to.row(t * group));
}

// Scores become exp(score - most), 0 from `seen` on; returns log sum exp.
template <class T>
T softmax(T* scores, int64_t seen, int64_t width, T* sum_out) {
  T most = -std::numeric_limits<T>::infinity(), sum = 0;
#pragma omp simd reduction(max : most)
  for (int64_t j = 0; j < seen; ++j) most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < seen; ++j) {
    scores[j] = vector_exp(scores[j] - most);
    sum += scores[j];
  }
  std::fill(scores + seen, scores + width, T{0});
  *sum_out = sum;
  return most + std::log(sum);
}

template <class T>
void attend(const Arguments<T>& a, int64_t kv_head, int64_t first, int64_t tokens, T* memory) {
  const Shape& s = a.shape;
  const int64_t group = s.group(), rows = tokens * group, added = first + tokens, width = s.cached + added;
  const Matrix<T> q{memory, s.head_dim}, out{q.row(rows), s.head_dim}, scores{out.row(rows), width};
  T* const sums = scores.row(rows);
  const Keys<T> k = a.keys(kv_head), v = a.values(kv_head);
  gather_queries(q, a, kv_head, first, tokens);
  if (s.cached > 0)
    gemm_on_this_thread<T>(kPlain, kTransposed, rows, s.cached, s.head_dim, a.scale(), q, k.cached, 0,
                           scores);
  gemm_on_this_thread<T>(kPlain, kTransposed, rows, added, s.head_dim, a.scale(), q, k.added, 0,
                         scores.at(0, s.cached));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = first + r / group, head = kv_head * group + r % group;
    a.lse.row(head)[token] = softmax(scores.row(r), s.cached + token + 1, width, &sums[r]);
  }
  gemm_on_this_thread<T>(kPlain, kPlain, rows, s.head_dim, added, 1, scores.at(0, s.cached), v.added, 0, out);
  if (s.cached > 0)
    gemm_on_this_thread<T>(kPlain, kPlain, rows, s.head_dim, s.cached, 1, scores, v.cached, 1, out);
  for (int64_t r = 0; r < rows; ++r) {
    T* const to = a.out.row(first + r / group) + (kv_head * group + r % group) * s.head_dim;
    const T factor = T{1} / sums[r];
#pragma omp simd
    for (int64_t d = 0; d < s.head_dim; ++d) to[d] = out.row(r)[d] * factor;
  }
}

// Tokens whose query heads of one KV head make a matrix of scores.
int64_t tokens_at_once(const Shape& s) {
  return std::max<int64_t>(1, std::min(kMostRows, kMostScores / s.keys()) / s.group());
}

template <class T>
void attend_all(const Arguments<T>& a, Scratch& scratch) {
  const Shape& s = a.shape;
  const int64_t each = tokens_at_once(s), blocks = (s.tokens + each - 1) / each, rows = each * s.group();
  const int64_t room = rows * (2 * s.head_dim + s.keys() + 1);
  T* const memory = scratch.take<T>(omp_get_max_threads() * room);
#pragma omp parallel for collapse(2) schedule(dynamic, 1) if (s.parallel())
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t g = 0; g < s.kv_heads; ++g)
      attend(a, g, block * each, std::min(each, s.tokens - block * each),
             memory + omp_get_thread_num() * room);
}

// mass[0 .. count) of keys [begin, begin + count) of those that are cached or those that are new.
template <class T>
void sum_mass(const Arguments<T>& a, int64_t kv_head, bool added, int64_t begin, int64_t count, T* mass,
              T* memory) {
  const Shape& s = a.shape;
  const int64_t group = s.group(), each = std::max<int64_t>(1, kMostRows / group);
  const Matrix<T> q{memory, s.head_dim}, scores{q.row(each * group), count};
  const Keys<T> keys = a.keys(kv_head);
  std::fill_n(mass, count, T{0});
  for (int64_t first = added ? begin : 0; first < s.tokens; first += each) {
    const int64_t tokens = std::min(each, s.tokens - first), rows = tokens * group;
    gather_queries(q, a, kv_head, first, tokens);
    gemm_on_this_thread<T>(kPlain, kTransposed, rows, count, s.head_dim, a.scale(), q,
                           (added ? keys.added : keys.cached).at(begin, 0), 0, scores);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = first + r / group;
      const int64_t seen = added ? std::min(count, token + 1 - begin) : count;
      const T lse = a.lse.row(kv_head * group + r % group)[token];
      const T* const row = scores.row(r);
#pragma omp simd
      for (int64_t j = 0; j < seen; ++j) mass[j] += vector_exp(row[j] - lse);
    }
  }
}

template <class T>
void sum_all_mass(const Arguments<T>& a, Scratch& scratch) {
  const Shape& s = a.shape;
  const int64_t rows = std::max(kMostRows, s.group()), room = rows * (s.head_dim + kMassTile) + kMassTile;
  const int64_t cached_tiles = (s.cached + kMassTile - 1) / kMassTile;
  const int64_t tiles = cached_tiles + (s.tokens + kMassTile - 1) / kMassTile;
  T* const memory = scratch.take<T>(omp_get_max_threads() * room);
#pragma omp parallel for collapse(2) schedule(dynamic, 1) if (s.parallel())
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t g = 0; g < s.kv_heads; ++g) {
      const bool added = tile >= cached_tiles;
      const int64_t begin = (tile - (added ? cached_tiles : 0)) * kMassTile;
      const int64_t count = std::min(kMassTile, (added ? s.tokens : s.cached) - begin);
      T* const sums = memory + omp_get_thread_num() * room;
      sum_mass(a, g, added, begin, count, sums, sums + kMassTile);
      T* const to = (added ? a.new_mass : a.mass).row(g) + begin;
      for (int64_t j = 0; j < count; ++j) to[j] = added ? sums[j] : to[j] + sums[j];
    }
}

// ---- what is kept ----

struct Candidate {
  int64_t position, source;  // source: its slot, or capacity of the cache + i for new token i
  double mass;
};
// A NaN would make the order none at all.
double comparable(double mass) { return std::isnan(mass) ? 0.0 : mass; }

// The new tokens of one KV head, on their way into its slots.
template <class T>
struct Arrivals {
  Matrix<T> k, v;  // of the new tokens, from the head's first column
  const T* mass;   // of the new tokens, or null
  int64_t tokens, first_position;
};
// The cache of one KV head.
template <class T>
struct HeadCache {
  Matrix<T> k, v;
  int32_t *positions, *ranks;
  T* mass;
  int64_t count, capacity, head_dim;
};

// The `count` tokens that go, in order of position.
template <class T>
std::vector<Candidate> victims_of(const HeadCache<T>& cache, const Arrivals<T>& arrivals,
                                  const KvRetention& keep, int64_t count) {
  std::vector<Candidate> candidates;
  const int64_t recent = arrivals.first_position + arrivals.tokens - keep.recent;
  const auto consider = [&](int64_t position, int64_t source, const T* mass) {
    if (position >= keep.sinks && position < recent)
      candidates.push_back({position, source, mass ? comparable(static_cast<double>(*mass)) : 0.0});
  };
  for (int64_t slot = 0; slot < cache.count; ++slot)
    consider(cache.positions[slot], slot, cache.mass ? cache.mass + slot : nullptr);
  for (int64_t i = 0; i < arrivals.tokens; ++i)
    consider(arrivals.first_position + i, cache.capacity + i, cache.mass ? arrivals.mass + i : nullptr);
  if (static_cast<int64_t>(candidates.size()) < count)
    fail_internal("a KV cache has {} tokens to choose from, wanted {} of them gone", candidates.size(),
                  count);
  std::nth_element(candidates.begin(), candidates.begin() + count, candidates.end(),
                   [](const Candidate& a, const Candidate& b) {
                     return a.mass != b.mass ? a.mass < b.mass : a.position > b.position;
                   });
  candidates.resize(static_cast<size_t>(count));
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.position < b.position; });
  return candidates;
}

template <class T>
void append(const HeadCache<T>& cache, const Arrivals<T>& arrivals, const KvRetention& keep) {
  const int64_t evicted = std::max<int64_t>(0, cache.count + arrivals.tokens - cache.capacity);
  std::vector<Candidate> victims;
  if (evicted > 0) victims = victims_of(cache, arrivals, keep, evicted);
  const auto gone_before = [&](int64_t position) {
    return std::lower_bound(victims.begin(), victims.end(), position,
                            [](const Candidate& a, int64_t b) { return a.position < b; }) -
           victims.begin();
  };
  if (cache.ranks && evicted > 0)
    for (int64_t slot = 0; slot < cache.count; ++slot)
      cache.ranks[slot] -= static_cast<int32_t>(gone_before(cache.positions[slot]));

  std::vector<int64_t> slots;
  std::vector<bool> arrives(static_cast<size_t>(arrivals.tokens), true);
  for (const Candidate& victim : victims) {
    if (victim.source < cache.capacity)
      slots.push_back(victim.source);
    else
      arrives[static_cast<size_t>(victim.source - cache.capacity)] = false;
  }
  for (int64_t slot = cache.count; slot < cache.capacity; ++slot) slots.push_back(slot);
  auto slot = slots.begin();
  for (int64_t i = 0; i < arrivals.tokens; ++i) {
    if (!arrives[static_cast<size_t>(i)]) continue;
    std::copy_n(arrivals.k.row(i), cache.head_dim, cache.k.row(*slot));
    std::copy_n(arrivals.v.row(i), cache.head_dim, cache.v.row(*slot));
    const int64_t position = arrivals.first_position + i;
    if (cache.positions) cache.positions[*slot] = static_cast<int32_t>(position);
    if (cache.ranks) cache.ranks[*slot] = static_cast<int32_t>(cache.count + i - gone_before(position));
    if (cache.mass) cache.mass[*slot] = arrivals.mass[i];
    ++slot;
  }
}

template <class T>
T* row_or_null(const Tensor& tensor, int64_t row) {
  return tensor ? matrix<T>(tensor).row(row) : nullptr;
}

void expect_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v, const Tensor& new_mass,
                  DType compute, int64_t kv_heads) {
  const int64_t capacity = cache.k.rows(), tokens = k.rows(), width = k.row_size();
  if (tokens < 1 || cache.count < 0 || cache.count > capacity)
    fail_internal("a KV cache of {} slots with {} tokens gets {} more", capacity, cache.count, tokens);
  expect(k, "cached attention k", compute, tokens, width);
  expect(v, "cached attention v", compute, tokens, width);
  expect(cache.k, "cache k", compute, capacity, width);
  expect(cache.v, "cache v", compute, capacity, width);
  for (const Tensor& each : {cache.positions, cache.ranks})
    if (each) expect(each, "cache positions or ranks", DType::i32, kv_heads, capacity);
  if (static_cast<bool>(cache.mass) != static_cast<bool>(new_mass))
    fail_internal("of a KV cache's mass and that of new tokens, one is missing");
  if (cache.mass) {
    expect(cache.mass, "cache mass", compute, kv_heads, capacity);
    expect(new_mass, "cache new_mass", compute, kv_heads, tokens);
  }
}

}  // namespace

void CpuOps::cached_attention(const Tensor& out, const Tensor& lse, const Tensor& new_mass, const Tensor& q,
                              const Tensor& k, const Tensor& v, const KvCacheView& cache,
                              const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  const int64_t tokens = q.rows(), width = q.row_size(), kv_width = k.row_size();
  if (head_dim <= 0 || kv_width < head_dim || width % head_dim != 0 || kv_width % head_dim != 0 ||
      width % kv_width != 0)
    fail_internal("cached attention: rows of {} and {} elements do not hold query and KV heads of {}", width,
                  kv_width, head_dim);
  const Shape shape{tokens, cache.count, width / head_dim, kv_width / head_dim, head_dim};
  expect(q, "cached attention q", compute_, tokens, width);
  expect(out, "cached attention out", compute_, tokens, width);
  expect(lse, "cached attention lse", compute_, shape.heads, tokens);
  expect_cache(cache, k, v, new_mass, compute_, shape.kv_heads);
  if (cache.ranks) {
    expect(cosines, "cached attention cosines", compute_, cosines.rows(), head_dim / 2);
    expect(sines, "cached attention sines", compute_, cosines.rows(), head_dim / 2);
    if (cosines.rows() < shape.keys() || head_dim % 2 != 0)
      fail_internal("cached attention: {} keys of {} elements to turn, the table has {} rows", shape.keys(),
                    head_dim, cosines.rows());
  }
  if (cache.count == 0 && !cache.ranks) {
    int64_t offsets[] = {0, tokens};
    const SequenceView sequence{{offsets, DType::i64, {2}}, {}, 1, tokens};
    attention_forward(out, lse, q, k, v, sequence, {}, head_dim);
    if (!cache.mass) return;
  }
  run([&]<class T>(T) {
    Arguments<T> a{matrix<T>(out),
                   matrix<T>(lse),
                   matrix<T>(q),
                   matrix<T>(k),
                   matrix<T>(v),
                   matrix<T>(cache.k),
                   matrix<T>(cache.v),
                   matrix<T>(cache.mass),
                   matrix<T>(new_mass),
                   {nullptr, head_dim},
                   shape};
    if (cache.ranks) {
      a.turned.data = sums_.take<T>(shape.kv_heads * shape.keys() * head_dim);
      turn_keys(a, cache.ranks, matrix<T>(cosines), matrix<T>(sines));
    }
    if (cache.count > 0 || cache.ranks) attend_all(a, activations_);
    if (cache.mass) sum_all_mass(a, activations_);
  });
}

void CpuOps::append_to_cache(const KvCacheView& cache, const Tensor& k, const Tensor& v,
                             const Tensor& new_mass, int64_t first_position, const KvRetention& keep) {
  const int64_t kv_heads = cache.positions ? cache.positions.rows() : 1, capacity = cache.k.rows();
  const int64_t head_dim = k.row_size() / kv_heads;
  expect_cache(cache, k, v, new_mass, compute_, kv_heads);
  if (cache.count + k.rows() > capacity &&
      (!cache.positions || keep.sinks + keep.heavy + keep.recent != capacity))
    fail_internal("a KV cache of {} slots gets {} tokens, and is to keep {} + {} + {}", capacity,
                  cache.count + k.rows(), keep.sinks, keep.heavy, keep.recent);
  narrow<int32_t>(first_position + k.rows(), "position in a KV cache");
  run([&]<class T>(T) {
#pragma omp parallel for if (kv_heads * (cache.count + k.rows()) > kParallelElements)
    for (int64_t g = 0; g < kv_heads; ++g) {
      const int64_t column = g * head_dim;
      append<T>({matrix<T>(cache.k).at(0, column), matrix<T>(cache.v).at(0, column),
                 row_or_null<int32_t>(cache.positions, g), row_or_null<int32_t>(cache.ranks, g),
                 row_or_null<T>(cache.mass, g), cache.count, capacity, head_dim},
                {matrix<T>(k).at(0, column), matrix<T>(v).at(0, column), row_or_null<T>(new_mass, g),
                 k.rows(), first_position},
                keep);
    }
  });
}

void CpuOps::decode_attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                              const Tensor& v, std::span<const KvStep> steps, const Tensor& counts,
                              const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
  const auto sequences = static_cast<int64_t>(steps.size());
  expect(counts, "decode attention counts", DType::i32, sequences, 2);
  expect(q, "decode attention q", compute_, sequences, q.row_size());
  for (int64_t s = 0; s < sequences; ++s) {
    const KvStep& step = steps[static_cast<size_t>(s)];
    const auto row = [&](const Tensor& t) { return t.row_slice(s, 1); };
    cached_attention(row(out), lse.column_slice(s, 1), step.new_mass, row(q), row(k), row(v), step.cache,
                     cosines, sines, head_dim);
    append_to_cache(step.cache, row(k), row(v), step.new_mass, step.first_position, step.keep);
  }
}

}  // namespace sinklora
