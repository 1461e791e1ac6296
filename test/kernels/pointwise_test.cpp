// CPU embedding, RMSNorm, RoPE and SwiGLU.
#include "kernels/cpu/vector_math.h"
#include "test/kernels/reference.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

const int64_t kTokens[] = {1, 2, 31, 33, 127};

template <class T>
struct Norm {
  std::unique_ptr<Ops> ops = make_cpu_ops(dtype_of<T>());
  Array<T> x, delta, gain, sum, normed, reciprocal, d_normed, d_x, d_gain;
  Norm(int64_t tokens, int64_t hidden, double scale = 1.0)
      : x(random_array<T>(tokens, hidden, "x", scale)),
        delta(random_array<T>(tokens, hidden, "delta", scale)),
        gain(random_array<T>(1, hidden, "gain")),
        sum(tokens, hidden),
        normed(tokens, hidden),
        reciprocal(tokens, 1),
        d_normed(random_array<T>(tokens, hidden, "d_normed")),
        d_x(tokens, hidden),
        d_gain(1, hidden) {}
  static constexpr double kEpsilon = 1e-5;
  void forward() {
    ops->residual_rmsnorm_forward(sum.view(), normed.view(), reciprocal.flat(), x.view(), delta.view(),
                                  gain.flat(), kEpsilon);
  }
  void backward() {
    ops->rmsnorm_backward(d_x.view(), d_gain.flat(), d_normed.view(), sum.view(), reciprocal.flat(),
                          gain.flat());
  }
};

template <class T>
Array<T> added(const Array<T>& a, const Array<T>& b) {
  Array<T> c = a;
  for (size_t i = 0; i < c.values.size(); ++i) c.values[i] += b.values[i];
  return c;
}

// Angles of half a dozen radians at most: cosines and sines of any size do for the test of a rotation.
template <class T>
std::pair<Array<T>, Array<T>> angles(int64_t positions, int64_t half) {
  std::pair<Array<T>, Array<T>> table{Array<T>(positions, half), Array<T>(positions, half)};
  for (int64_t p = 0; p < positions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(100.0, -static_cast<double>(i) / static_cast<double>(half));
      table.first(p, i) = static_cast<T>(std::cos(angle)),
                     table.second(p, i) = static_cast<T>(std::sin(angle));
    }
  return table;
}

Array<int32_t> numbers(int64_t count, int64_t bound, std::string_view name) {
  const RandomStream random(2, name);
  Array<int32_t> result(count, 1);
  for (size_t i = 0; i < result.values.size(); ++i)
    result.values[i] = static_cast<int32_t>(random.below(i, static_cast<uint64_t>(bound)));
  return result;
}

}  // namespace

TEST_CASE("cpu exp: within 1.5 units in the last place everywhere, exact at the ends") {
  double worst = 0;
  for (double x = -87.3; x <= 88.3; x += 1.3e-4) {
    const auto argument = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(argument));
    worst = std::max(worst, std::fabs(static_cast<double>(vector_exp(argument)) - exact) / exact);
  }
  CHECK(worst <= 1.5 * 0x1p-23);
  CHECK(vector_exp(0.0f) == 1.0f);
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(vector_exp(-infinity) == 0.0f);
  CHECK(vector_exp(-100.0f) == 0.0f);
  CHECK(vector_exp(infinity) == infinity);
  CHECK(vector_exp(89.0f) == infinity);
  CHECK(std::isnan(vector_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("cpu rmsnorm: double the formula, float no worse than three times plain loops") {
  for (const int64_t tokens : kTokens)
    for (const int64_t hidden : {1, 7, 64, 576}) {
      Norm<double> exact(tokens, hidden);
      exact.forward();
      CHECK(relative_error(exact.normed, reference::rmsnorm(added(exact.x, exact.delta), exact.gain, 1e-5)) <=
            rounding(hidden, 4, kDoubleEpsilon));
      Norm<float> work(tokens, hidden);
      work.forward();
      const double plain =
          relative_error(reference::rmsnorm(added(work.x, work.delta), work.gain, 1e-5), exact.normed);
      CHECK(relative_error(work.normed, exact.normed) <= std::max(3 * plain, rounding(1, 2)));
      exact.backward(), work.backward();
      // Five roundings in a row, and a sum in double. (Of a single number, the two terms of d_x cancel.)
      if (hidden > 1) CHECK(relative_error(work.d_x, exact.d_x) <= rounding(1, 5));
      CHECK(relative_error(work.d_gain, exact.d_gain) <= rounding(1, 5));
      Array<float> rebuilt(tokens, hidden);
      work.ops->rmsnorm_rebuild(rebuilt.view(), work.sum.view(), work.reciprocal.flat(), work.gain.flat());
      CHECK(same_bits(rebuilt, work.normed));
    }
}

TEST_CASE("cpu rmsnorm: the backward is the slope of the forward, and adds") {
  Norm<double> norm(5, 11);
  const auto loss = [&] {
    norm.forward();
    return project(norm.normed, norm.d_normed);
  };
  loss();
  norm.backward();
  CHECK(gradient_error(norm.x, norm.d_x, loss) < kGradientTolerance);
  CHECK(gradient_error(norm.delta, norm.d_x, loss) < kGradientTolerance);
  CHECK(gradient_error(norm.gain, norm.d_gain, loss) < kGradientTolerance);
  loss();
  const Array<double> once_x = norm.d_x, once_gain = norm.d_gain;
  norm.backward();
  CHECK(relative_error(norm.d_x, added(once_x, once_x)) < 1e-15);
  CHECK(relative_error(norm.d_gain, added(once_gain, once_gain)) < 1e-15);
  Array<double> without(5, 11);
  norm.ops->rmsnorm_backward(without.view(), {}, norm.d_normed.view(), norm.sum.view(),
                             norm.reciprocal.flat(), norm.gain.flat());
  CHECK(same_bits(without, once_x));
}

TEST_CASE("cpu rmsnorm: without a delta, with a bf16 gain, and of numbers whose squares leave float") {
  Norm<float> norm(33, 64);
  const Array<BFloat16> gain = as<BFloat16>(norm.gain);
  Array<float> normed(33, 64);
  norm.ops->residual_rmsnorm_forward({}, normed.view(), norm.reciprocal.flat(), norm.x.view(), {},
                                     gain.flat(), 1e-5);
  CHECK(relative_error(normed, reference::rmsnorm(as<double>(norm.x), as<double>(widen(gain)), 1e-5)) <=
        rounding(1, 4));
  for (const double scale : {1e-25, 1e25}) {
    Norm<float> work(3, 64, scale);
    Norm<double> exact(3, 64, scale);
    work.forward(), exact.forward();
    CHECK(relative_error(work.normed, exact.normed) <= rounding(1, 4));
  }
}

TEST_CASE(
    "cpu embedding: rows by id in every type of table, and their gradients in the order of the tokens") {
  for (const int64_t tokens : kTokens) {
    const auto ids = numbers(tokens, 9, "ids");
    const auto ops = make_cpu_ops(DType::f32);
    const Array<float> table = widen(as<BFloat16>(random_array<float>(9, 37, "table")));
    const Array<BFloat16> narrow = as<BFloat16>(table);
    Array<float> out(tokens, 37), out_narrow(tokens, 37), want(tokens, 37);
    ops->embedding_forward(out.view(), table.view(), ids.flat());
    ops->embedding_forward(out_narrow.view(), narrow.view(), ids.flat());
    Array<float> d_table = random_array<float>(9, 37, "before"), want_d = d_table;
    const Array<float> d_out = random_array<float>(tokens, 37, "d_out");
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < 37; ++c) {
        want(t, c) = table(ids(t, 0), c);
        want_d(ids(t, 0), c) += d_out(t, c);
      }
    ops->embedding_backward(d_table.view(), d_out.view(), ids.flat());
    CHECK(same_bits(out, want));
    CHECK(same_bits(out_narrow, want));
    CHECK(same_bits(d_table, want_d));
  }
  const auto ops = make_cpu_ops(DType::f64);
  const Array<double> table(4, 2);
  Array<double> out(3, 2);
  Array<int32_t> ids(3, 1);
  for (const int32_t wrong : {-1, 4}) {
    ids(1, 0) = wrong;
    CHECK_THROWS_WITH_AS(ops->embedding_forward(out.view(), table.view(), ids.flat()),
                         doctest::Contains("token 1"), Error);
    CHECK_THROWS_AS(ops->embedding_backward(table.view(), out.view(), ids.flat()), Error);
  }
}

TEST_CASE("cpu rope: the rotation, its inverse, float against double, columns of a wider buffer") {
  for (const int64_t tokens : kTokens)
    for (const int64_t head_dim : {2, 8, 64}) {
      const int64_t half = head_dim / 2, heads = 3;
      const auto positions = numbers(tokens, 50, "positions");
      const auto [cosines, sines] = angles<double>(50, half);
      const auto exact = make_cpu_ops(DType::f64), work = make_cpu_ops(DType::f32);
      const Array<double> x = random_array<double>(tokens, heads * head_dim, "x");
      Array<double> want = x, got(tokens, heads * head_dim + 5, 3.0);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t i = 0; i < half; ++i) {
            const double c = cosines(positions(t, 0), i), s = sines(positions(t, 0), i);
            const double a = x(t, h * head_dim + i), b = x(t, h * head_dim + half + i);
            want(t, h * head_dim + i) = a * c - b * s, want(t, h * head_dim + half + i) = b * c + a * s;
          }
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < x.columns; ++c) got(t, 2 + c) = x(t, c);
      const Tensor window = got.view().column_slice(2, x.columns);
      exact->rope(window, positions.flat(), cosines.view(), sines.view(), head_dim, false);
      double worst = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t c = 0; c < x.columns; ++c)
          worst = std::max(worst, std::fabs(got(t, 2 + c) - want(t, c)));
        for (const int64_t c : {int64_t{0}, int64_t{1}, x.columns + 2, x.columns + 4})
          REQUIRE(got(t, c) == 3.0);
      }
      CHECK(worst <= rounding(2, 8, kDoubleEpsilon));
      Array<float> narrow = as<float>(x);
      const auto [cosines_f, sines_f] = angles<float>(50, half);
      work->rope(narrow.view(), positions.flat(), cosines_f.view(), sines_f.view(), head_dim, false);
      CHECK(relative_error(narrow, want) <= rounding(2, 2));
      exact->rope(window, positions.flat(), cosines.view(), sines.view(), head_dim, true);
      for (int64_t c = 0; c < x.columns; ++c)
        REQUIRE(std::fabs(got(0, 2 + c) - x(0, c)) <= rounding(4, 8, kDoubleEpsilon));
    }
  const auto ops = make_cpu_ops(DType::f64);
  Array<double> x(1, 4), table(3, 2);
  Array<int32_t> position(1, 1, 3);
  CHECK_THROWS_AS(ops->rope(x.view(), position.flat(), table.view(), table.view(), 4, false), Error);
}

TEST_CASE("cpu swiglu: formula, slope, in place, float against double, far arguments") {
  for (const int64_t tokens : kTokens) {
    const auto exact = make_cpu_ops(DType::f64), work = make_cpu_ops(DType::f32);
    Array<double> gate_up = random_array<double>(tokens, 2 * 41, "gate_up", 3.0), out(tokens, 41),
                  d_gate_up = gate_up;
    const Array<double> d_out = random_array<double>(tokens, 41, "d_out");
    exact->swiglu_forward(out.view(), gate_up.view());
    CHECK(relative_error(out, reference::swiglu(gate_up)) <= rounding(1, 4, kDoubleEpsilon));
    exact->swiglu_backward(d_gate_up.view(), d_out.view(), gate_up.view());
    const auto loss = [&] {
      exact->swiglu_forward(out.view(), gate_up.view());
      return project(out, d_out);
    };
    CHECK(gradient_error(gate_up, d_gate_up, loss) < kGradientTolerance);
    Array<double> in_place = gate_up;
    exact->swiglu_backward(in_place.view(), d_out.view(), in_place.view());
    CHECK(same_bits(in_place, d_gate_up));

    const Array<float> narrow = as<float>(gate_up);
    Array<float> out_f(tokens, 41), d_f(tokens, 82);
    work->swiglu_forward(out_f.view(), narrow.view());
    CHECK(relative_error(out_f, out) <=
          std::max(3 * relative_error(reference::swiglu(narrow), out), rounding(1, 2)));
    work->swiglu_backward(d_f.view(), as<float>(d_out).view(), narrow.view());
    CHECK(relative_error(d_f, d_gate_up) <= rounding(1, 6));
  }
  const auto ops = make_cpu_ops(DType::f32);
  Array<float> far(1, 4, 1.0f), out(1, 2), slope(1, 4);
  far(0, 0) = -500, far(0, 1) = 500;
  ops->swiglu_forward(out.view(), far.view());
  CHECK(out(0, 0) == 0);
  CHECK(out(0, 1) == 500);
  const Array<float> d_out(1, 2, 1.0f);
  ops->swiglu_backward(slope.view(), d_out.view(), far.view());
  CHECK(slope(0, 0) == 0);
  CHECK(slope(0, 1) == 1);
}

TEST_CASE("cpu pointwise ops: equal bits on any number of threads, and NaN comes through") {
  Array<float> d_gain[2], d_x[2], d_table[2];
  const auto ids = numbers(900, 20, "ids");
  on_one_and_two_threads([&](int i) {
    Norm<float> norm(900, 300);
    norm.forward(), norm.backward();
    d_gain[i] = norm.d_gain, d_x[i] = norm.d_x;
    d_table[i] = Array<float>(20, 300);
    norm.ops->embedding_backward(d_table[i].view(), norm.d_normed.view(), ids.flat());
  });
  CHECK(same_bits(d_gain[0], d_gain[1]));
  CHECK(same_bits(d_x[0], d_x[1]));
  CHECK(same_bits(d_table[0], d_table[1]));
  Norm<float> norm(2, 8);
  norm.x(1, 3) = std::numeric_limits<float>::quiet_NaN();
  norm.forward();
  CHECK(std::isnan(norm.normed(1, 0)));
  CHECK(!std::isnan(norm.normed(0, 0)));
}
