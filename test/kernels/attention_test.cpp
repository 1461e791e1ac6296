// CPU attention: dense reference, float against double, central differences, bits, slices.
#include <fmt/ranges.h>

#include <string>

#include "test/kernels/reference.h"

using namespace sinklora;
using namespace sinklora::test;
using reference::AttentionCase;

namespace {

// The sequences of a case, and every tensor of its forward and backward.
template <class T>
struct Run {
  AttentionCase c;
  std::unique_ptr<Ops> ops = make_cpu_ops(dtype_of<T>());
  Array<int64_t> offsets;
  Array<T> q, k, v, d_out, out, lse, d_q, d_k, d_v;

  explicit Run(const AttentionCase& c, double scale = 1.0)
      : c(c), offsets(static_cast<int64_t>(c.lengths.size()) + 1, 1) {
    for (size_t s = 0; s < c.lengths.size(); ++s) offsets.values[s + 1] = offsets.values[s] + c.lengths[s];
    const int64_t width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
    q = random_array<T>(c.tokens(), width, "q", scale), k = random_array<T>(c.tokens(), kv_width, "k", scale);
    v = random_array<T>(c.tokens(), kv_width, "v"), d_out = random_array<T>(c.tokens(), width, "d_out");
    // What is overwritten starts as NaN, to show when it is not.
    const T nan = std::numeric_limits<T>::quiet_NaN();
    out = d_q = Array<T>(c.tokens(), width, nan), d_k = d_v = Array<T>(c.tokens(), kv_width, nan);
    lse = Array<T>(c.heads, c.tokens(), nan);
  }
  SequenceView sequences() const {
    return {offsets.flat(),
            {},
            static_cast<int64_t>(c.lengths.size()),
            c.lengths.empty() ? 0 : *std::max_element(c.lengths.begin(), c.lengths.end())};
  }
  void forward() {
    ops->attention_forward(out.view(), lse.view(), q.view(), k.view(), v.view(), sequences(), c.pattern,
                           c.head_dim);
  }
  void backward() {
    ops->attention_backward(d_q.view(), d_k.view(), d_v.view(), d_out.view(), q.view(), k.view(), v.view(),
                            out.view(), lse.view(), sequences(), c.pattern, c.head_dim);
  }
};

// full, fixed, s2, s2-wrap, sf, sf with more sinks than a group holds.
std::vector<AttentionPattern> patterns(int64_t group_size, int64_t heads) {
  return {{0, heads, 0, false},
          {group_size, heads, 0, false},
          {group_size, heads / 2, 0, false},
          {group_size, heads / 2, 0, true},
          {group_size, heads * 3 / 4, 4, false},
          {group_size, heads / 2, 37, false},
          {group_size, heads / 2, 3, true}};
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> all;
  for (const auto& lengths :
       std::vector<std::vector<int64_t>>{{1}, {2}, {31}, {33}, {127}, {50, 1, 17, 130}, {0, 5, 0}})
    for (const int64_t group_size : {6, 32})
      for (const auto& pattern : patterns(group_size, 4)) all.push_back({lengths, 4, 2, 8, pattern});
  for (const auto& pattern : patterns(64, 6)) all.push_back({{200, 77}, 6, 2, 64, pattern});
  for (const auto& pattern : patterns(300, 3))
    all.push_back({{700}, 3, 3, 5, pattern});  // several tiles of keys
  return all;
}

std::string describe(const AttentionCase& c) {
  return fmt::format("lengths {}, D {}, G {}, shifted from {}, sinks {}, wrap {}", fmt::join(c.lengths, " "),
                     c.head_dim, c.pattern.group_size, c.pattern.first_shifted_head, c.pattern.num_sinks,
                     c.pattern.wrap);
}

double largest(const Array<float>& numbers) {
  double most = 0;
  for (const float x : numbers.values)
    most = std::isfinite(x) ? std::max(most, double{std::fabs(x)}) : INFINITY;
  return most;
}

}  // namespace

TEST_CASE("cpu attention: in double the dense formula; in float no worse than three times plain loops") {
  for (const AttentionCase& c : cases()) {
    INFO(describe(c));
    Run<double> exact(c);
    exact.forward(), exact.backward();
    const auto dense = reference::attention(c, exact.q, exact.k, exact.v, exact.d_out);
    const double tolerance = rounding(c.tokens() + c.head_dim, 8, kDoubleEpsilon);
    REQUIRE(relative_error(exact.out, dense.out) <= tolerance);
    REQUIRE(relative_error(exact.lse, dense.lse) <= tolerance);
    REQUIRE(relative_error(exact.d_q, dense.d_q) <= tolerance);
    REQUIRE(relative_error(exact.d_k, dense.d_k) <= tolerance);
    REQUIRE(relative_error(exact.d_v, dense.d_v) <= tolerance);

    Run<float> work(c);
    work.forward(), work.backward();
    const auto plain = reference::attention(c, work.q, work.k, work.v, work.d_out);
    // Where plain loops happen to be exact, two roundings are still allowed.
    const double least = 2 * std::numeric_limits<float>::epsilon();
    const auto close = [&](const Array<float>& got, const Array<float>& loops, const Array<double>& truth) {
      return relative_error(got, truth) <= std::max(3 * relative_error(loops, truth), least);
    };
    REQUIRE(close(work.out, plain.out, exact.out));
    REQUIRE(close(work.lse, plain.lse, exact.lse));
    REQUIRE(close(work.d_v, plain.d_v, exact.d_v));
    if (c.tokens() == 1) {
      // One key: dS = dP - delta is 0, and what is left of it is the rounding of two sums of D terms each.
      const double bound = 2 * rounding(c.head_dim, 8, std::numeric_limits<float>::epsilon()) *
                           largest(work.d_out) * largest(work.v) * static_cast<double>(c.head_dim);
      REQUIRE(largest(work.d_q) <= bound * largest(work.k));
      REQUIRE(largest(work.d_k) <= bound * largest(work.q) * static_cast<double>(c.heads / c.kv_heads));
      continue;
    }
    REQUIRE(close(work.d_q, plain.d_q, exact.d_q));
    REQUIRE(close(work.d_k, plain.d_k, exact.d_k));
  }
}

TEST_CASE("cpu attention: random shapes and patterns equal the dense formula") {
  const RandomStream random(5, "attention shapes");
  uint64_t draw = 0;
  const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random.below(draw++, bound)); };
  for (int round = 0; round < 150; ++round) {
    AttentionCase c;
    for (int64_t s = below(4); s >= 0; --s) c.lengths.push_back(below(90));
    c.kv_heads = 1 + below(3), c.heads = c.kv_heads * (1 + below(4)), c.head_dim = 1 + below(20);
    c.pattern = {below(50), below(static_cast<uint64_t>(c.heads) + 1), below(20), below(2) == 1};
    INFO(describe(c));
    Run<double> run(c);
    run.forward(), run.backward();
    const auto dense = reference::attention(c, run.q, run.k, run.v, run.d_out);
    const double tolerance = rounding(c.tokens() + c.head_dim, 8, kDoubleEpsilon);
    REQUIRE(relative_error(run.out, dense.out) <= tolerance);
    REQUIRE(relative_error(run.d_q, dense.d_q) <= tolerance);
    REQUIRE(relative_error(run.d_k, dense.d_k) <= tolerance);
    REQUIRE(relative_error(run.d_v, dense.d_v) <= tolerance);
  }
}

TEST_CASE("cpu attention: the backward is the slope of the forward") {
  for (const AttentionPattern& pattern : patterns(6, 4)) {
    Run<double> run({{19, 7}, 4, 2, 6, pattern});
    INFO(describe(run.c));
    run.forward(), run.backward();
    const auto loss = [&] {
      run.forward();
      return project(run.out, run.d_out);
    };
    CHECK(gradient_error(run.q, run.d_q, loss) < kGradientTolerance);
    CHECK(gradient_error(run.k, run.d_k, loss) < kGradientTolerance);
    CHECK(gradient_error(run.v, run.d_v, loss) < kGradientTolerance);
  }
}

TEST_CASE("cpu attention: large scores neither overflow nor lose the largest key") {
  const AttentionCase c{{150}, 2, 1, 16, {40, 1, 4, false}};
  Run<float> run(c, 30.0);  // scores of some thousands
  run.forward(), run.backward();
  Run<double> exact(c, 30.0);
  exact.forward();
  // A score of size s carries an error of s eps, which its exponential turns into a relative one.
  CHECK(relative_error(run.out, exact.out) <= rounding(c.head_dim, 30.0 * 30.0 * 4));
  CHECK(relative_error(run.d_q, run.d_q) == 0);  // finite
  CHECK(relative_error(run.d_k, run.d_k) == 0);
}

TEST_CASE("cpu attention: a NaN stays with those who see it") {
  const AttentionCase c{{40, 30}, 2, 2, 8, {10, 1, 0, false}};
  Run<float> clean(c), run(c);
  clean.forward();
  run.k(5, 0) = std::numeric_limits<float>::quiet_NaN();
  run.forward();
  for (int64_t t = 0; t < c.tokens(); ++t)
    for (int64_t h = 0; h < 2; ++h) {
      const bool sees = h == 0 && t < 40 && visible(c.pattern, 0, t, 5, 40);
      CHECK(std::isnan(run.out(t, h * 8)) == sees);
      if (!sees) CHECK(run.out(t, h * 8) == clean.out(t, h * 8));
    }
}

TEST_CASE("cpu attention: equal bits on every run and on any number of threads") {
  for (const auto& pattern : patterns(96, 6)) {
    const AttentionCase c{{600, 300, 9}, 6, 2, 32, pattern};
    std::vector<Run<float>> runs;
    for (int i = 0; i < 3; ++i) runs.emplace_back(c);
    on_one_and_two_threads([&](int i) {
      runs[static_cast<size_t>(i)].forward();
      runs[static_cast<size_t>(i)].backward();
    });
    runs[2].forward(), runs[2].backward();
    for (int i = 1; i < 3; ++i) {
      const auto &a = runs[0], &b = runs[static_cast<size_t>(i)];
      CHECK(same_bits(a.out, b.out));
      CHECK(same_bits(a.lse, b.lse));
      CHECK(same_bits(a.d_q, b.d_q));
      CHECK(same_bits(a.d_k, b.d_k));
      CHECK(same_bits(a.d_v, b.d_v));
    }
  }
}

TEST_CASE("cpu attention: q, k and v as columns of one buffer") {
  const AttentionCase c{{45, 20}, 4, 2, 8, {16, 2, 4, false}};
  Run<float> apart(c), run(c);
  apart.forward(), apart.backward();
  const auto gather = [&](const Array<float>& q, const Array<float>& k, const Array<float>& v) {
    Array<float> all(c.tokens(), 64);
    for (int64_t t = 0; t < c.tokens(); ++t) {
      for (int64_t i = 0; i < 32; ++i) all(t, i) = q(t, i);
      for (int64_t i = 0; i < 16; ++i) all(t, 32 + i) = k(t, i), all(t, 48 + i) = v(t, i);
    }
    return all;
  };
  const Array<float> qkv = gather(run.q, run.k, run.v), d_qkv(c.tokens(), 64, 7.0f);
  const auto part = [](const Array<float>& all, int64_t begin, int64_t count) {
    return all.view().column_slice(begin, count);
  };
  run.ops->attention_forward(run.out.view(), run.lse.view(), part(qkv, 0, 32), part(qkv, 32, 16),
                             part(qkv, 48, 16), run.sequences(), c.pattern, 8);
  run.ops->attention_backward(part(d_qkv, 0, 32), part(d_qkv, 32, 16), part(d_qkv, 48, 16), run.d_out.view(),
                              part(qkv, 0, 32), part(qkv, 32, 16), part(qkv, 48, 16), run.out.view(),
                              run.lse.view(), run.sequences(), c.pattern, 8);
  CHECK(same_bits(run.out, apart.out));
  CHECK(same_bits(d_qkv, gather(apart.d_q, apart.d_k, apart.d_v)));
}

TEST_CASE("cpu attention: shapes that do not fit are refused") {
  Run<float> run({{10}, 4, 2, 8, {}});
  CHECK_THROWS_AS(run.ops->attention_forward(run.out.view(), run.lse.view(), run.q.view(), run.k.view(),
                                             run.v.view(), run.sequences(), {}, 3),
                  Error);
  run.offsets.values[1] = 9;
  CHECK_THROWS_WITH_AS(run.forward(), doctest::Contains("cover tokens"), Error);
}
