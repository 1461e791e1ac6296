// The cache of one layer through hundreds of steps, against the algorithm as plain loops: H2O, StreamingLLM,
// and both at once.
#include "model/kv_cache.h"

#include "model/rope.h"
#include "test/kernels/kernel_test.h"
#include "test/model/toy_model.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t kPositions = 700, kLongestChunk = 61;

struct Remembered {
  int64_t position;
  std::vector<double> k, v;  // k before RoPE
  double mass = 0;
};

// One KV head that remembers tokens in order.
struct Reference {
  const RopeTable& table;
  KvCachePolicy policy;
  std::vector<Remembered> tokens{};

  int64_t angle(size_t rank) const {
    return policy.positions == KvPositions::index ? static_cast<int64_t>(rank) : tokens[rank].position;
  }
  std::vector<double> turned(const std::vector<double>& x, int64_t position) const {
    const size_t half = x.size() / 2;
    std::vector<double> y(x.size());
    for (size_t i = 0; i < half; ++i) {
      const size_t at = static_cast<size_t>(position) * half + i;
      y[i] = x[i] * table.cosines[at] - x[half + i] * table.sines[at];
      y[half + i] = x[half + i] * table.cosines[at] + x[i] * table.sines[at];
    }
    return y;
  }
  // A query head of token `query`, which is among the tokens, sees those up to it.
  std::vector<double> attend(const std::vector<double>& q, size_t query) {
    const std::vector<double> own = turned(q, angle(query));
    std::vector<double> p(query + 1), out(q.size());
    double sum = 0;
    for (size_t j = 0; j <= query; ++j) {
      const std::vector<double> k = turned(tokens[j].k, angle(j));
      double score = 0;
      for (size_t d = 0; d < q.size(); ++d) score += own[d] * k[d];
      sum += p[j] = std::exp(score / std::sqrt(static_cast<double>(q.size())));
    }
    for (size_t j = 0; j <= query; ++j) {
      tokens[j].mass += p[j] / sum;
      for (size_t d = 0; d < q.size(); ++d) out[d] += p[j] / sum * tokens[j].v[d];
    }
    return out;
  }
  void evict(int64_t length) {
    while (static_cast<int64_t>(tokens.size()) > policy.capacity) {
      auto worst = tokens.end();
      for (auto each = tokens.begin(); each != tokens.end(); ++each)
        if (each->position >= policy.keep.sinks && each->position < length - policy.keep.recent &&
            (worst == tokens.end() || each->mass <= worst->mass))
          worst = each;
      REQUIRE(worst != tokens.end());
      tokens.erase(worst);
    }
  }
};

// The tokens of one step, and the library's and the reference's way through it.
class Run {
 public:
  explicit Run(const KvCachePolicy& policy)
      : config_(toy_config()),
        table_(make_rope_table(config_, kPositions)),
        cache_(*ops_, config_, policy, kLongestChunk),
        heads_(static_cast<size_t>(config_.num_kv_heads), Reference{table_, policy}),
        cosines_(kPositions, config_.head_dim / 2),
        sines_(kPositions, config_.head_dim / 2) {
    cosines_.values = table_.cosines;
    sines_.values = table_.sines;
  }

  void step(int64_t tokens, const std::string& name) {
    const LlamaConfig& c = config_;
    const auto q = random_array<double>(tokens, c.query_width(), name + " q", 2.0);
    const auto k = random_array<double>(tokens, c.kv_width(), name + " k", 2.0);
    const auto v = random_array<double>(tokens, c.kv_width(), name + " v");
    check_output(run_library(q, k, v), run_reference(q, k, v));
    check_kept();
  }

 private:
  static std::vector<double> part(const Array<double>& from, int64_t row, int64_t head, int64_t dim) {
    const auto begin = from.values.begin() + row * from.columns + head * dim;
    return {begin, begin + dim};
  }

  Array<double> run_library(Array<double> q, Array<double> k, const Array<double>& v) {
    const LlamaConfig& c = config_;
    Array<double> out(q.rows, q.columns), lse(c.num_heads, q.rows);
    Array<int32_t> positions(q.rows, 1);
    for (int64_t i = 0; i < q.rows; ++i) positions(i, 0) = static_cast<int32_t>(cache_.next_position() + i);
    const KvStep step = cache_.step(1, 0, q.rows).kv;
    ops_->rope(q.view(), positions.flat(), cosines_.view(), sines_.view(), c.head_dim, false);
    if (!step.cache.ranks)
      ops_->rope(k.view(), positions.flat(), cosines_.view(), sines_.view(), c.head_dim, false);
    ops_->cached_attention(out.view(), lse.view(), step.new_mass, q.view(), k.view(), v.view(), step.cache,
                           cosines_.view(), sines_.view(), c.head_dim);
    ops_->append_to_cache(step.cache, k.view(), v.view(), step.new_mass, step.first_position, step.keep);
    cache_.advance(q.rows);
    return out;
  }

  Array<double> run_reference(const Array<double>& q, const Array<double>& k, const Array<double>& v) {
    const int64_t dim = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
    Array<double> out(q.rows, q.columns);
    for (int64_t g = 0; g < config_.num_kv_heads; ++g) {
      Reference& own = heads_[static_cast<size_t>(g)];
      const size_t first = own.tokens.size();
      for (int64_t i = 0; i < q.rows; ++i)
        own.tokens.push_back({length_ + i, part(k, i, g, dim), part(v, i, g, dim)});
      for (int64_t i = 0; i < q.rows; ++i)
        for (int64_t h = g * group; h < (g + 1) * group; ++h) {
          const auto head = own.attend(part(q, i, h, dim), first + static_cast<size_t>(i));
          std::copy(head.begin(), head.end(), out.values.begin() + i * out.columns + h * dim);
        }
      own.evict(length_ + q.rows);
    }
    length_ += q.rows;
    return out;
  }

  static void check_output(const Array<double>& got, const Array<double>& expected) {
    CHECK(relative_error(got, expected) < 1e-12);
  }

  void check_kept() {
    REQUIRE(cache_.length() == length_);
    const KvCacheView view = cache_.step(1, 0, 1).kv.cache;
    for (size_t g = 0; g < heads_.size(); ++g) {
      std::vector<int64_t> expected;
      for (const Remembered& token : heads_[g].tokens) expected.push_back(token.position);
      const int32_t* const row =
          view.positions.as<int32_t>() + static_cast<int64_t>(g) * view.positions.row_stride;
      std::vector<int64_t> kept(row, row + view.count);
      std::sort(kept.begin(), kept.end());
      REQUIRE(kept == expected);
    }
  }

  std::unique_ptr<Ops> ops_ = make_cpu_ops(DType::f64);
  LlamaConfig config_;
  RopeTable table_;
  KvCache cache_;
  std::vector<Reference> heads_;
  Array<double> cosines_, sines_;
  int64_t length_ = 0;
};

}  // namespace

TEST_CASE("what a cache keeps through 500 steps, and what it answers, are those of plain loops") {
  for (const KvPositions positions : {KvPositions::original, KvPositions::index})
    for (const KvRetention keep : {KvRetention{0, 12, 12}, KvRetention{4, 0, 19}, KvRetention{2, 9, 13}}) {
      CAPTURE(keep.sinks);
      CAPTURE(keep.heavy);
      Run run({keep.sinks + keep.heavy + keep.recent, true, keep, positions});
      run.step(kLongestChunk, "prompt");
      for (int64_t i = 0; i < 500; ++i) run.step(i % 50 == 49 ? 5 : 1, fmt::format("step {}", i));
    }
}
