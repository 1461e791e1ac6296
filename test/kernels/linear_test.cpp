// CPU linear layers with LoRA adapters.
#include "test/kernels/reference.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// Three adapters like those of q, k and v on one stacked weight; some outputs have none.
struct Shape {
  int64_t tokens, in, out;
  std::vector<int64_t> ranks, begins, outputs;
  int64_t rank() const {
    int64_t sum = 0;
    for (const int64_t r : ranks) sum += r;
    return sum;
  }
};

template <class T>
struct Layer {
  Shape s;
  std::unique_ptr<Ops> ops = make_cpu_ops(dtype_of<T>());
  Array<T> x, weight, a, y, u, d_y, d_x, d_weight, d_a;
  std::vector<Array<T>> b, d_b;
  std::vector<LinearAdapter> adapters;
  std::vector<AdapterGradient> gradients;
  static constexpr double kScale = 1.5;

  explicit Layer(const Shape& s)
      : s(s),
        x(random_array<T>(s.tokens, s.in, "x")),
        weight(random_array<T>(s.out, s.in, "weight")),
        a(random_array<T>(s.rank(), s.in, "a")),
        y(random_array<T>(s.tokens, s.out, "y before")),
        u(s.tokens, s.rank(), std::numeric_limits<T>::quiet_NaN()),
        d_y(random_array<T>(s.tokens, s.out, "d_y")),
        d_x(random_array<T>(s.tokens, s.in, "d_x before")),
        d_weight(random_array<T>(s.out, s.in, "dW before")),
        d_a(random_array<T>(s.rank(), s.in, "dA before")) {
    for (size_t i = 0; i < s.ranks.size(); ++i) {
      b.push_back(random_array<T>(s.outputs[i], s.ranks[i], fmt::format("b{}", i)));
      d_b.push_back(random_array<T>(s.outputs[i], s.ranks[i], fmt::format("dB{}", i)));
    }
    int64_t begin = 0;
    for (size_t i = 0; i < s.ranks.size(); begin += s.ranks[i++]) {
      adapters.push_back({a.view().row_slice(begin, s.ranks[i]), b[i].view(), s.begins[i], begin, kScale});
      gradients.push_back({d_a.view().row_slice(begin, s.ranks[i]), d_b[i].view()});
    }
  }
  Layer(const Layer&) = delete;
  Linear linear() const { return {weight.view(), adapters}; }
  LinearGradient gradient() const { return {d_weight.view(), gradients}; }
  void forward(bool accumulate) { ops->linear_forward(y.view(), u.view(), x.view(), linear(), accumulate); }
  void backward(bool accumulate) {
    ops->linear_backward(d_x.view(), gradient(), d_y.view(), x.view(), u.view(), linear(), accumulate);
  }
  // W + scale B A: what the layer is without the detour.
  Array<T> effective_weight() const {
    Array<T> sum = weight;
    for (size_t i = 0; i < adapters.size(); ++i)
      for (int64_t o = 0; o < s.outputs[i]; ++o)
        for (int64_t r = 0; r < s.ranks[i]; ++r)
          for (int64_t c = 0; c < s.in; ++c)
            sum(s.begins[i] + o, c) += static_cast<T>(kScale) * b[i](o, r) * a(adapters[i].u_begin + r, c);
    return sum;
  }
};

Shape shape(int64_t tokens, int64_t in, int64_t out) {
  return {tokens, in, out, {3, 2, 8}, {0, out / 2, out - out / 4}, {out / 2, out / 8, out / 4}};
}

template <class T>
Array<T> sum(const Array<T>& a, const Array<T>& b) {
  Array<T> c = a;
  for (size_t i = 0; i < c.values.size(); ++i) c.values[i] += b.values[i];
  return c;
}

}  // namespace

TEST_CASE("cpu linear: in double the formula, added where asked, at ragged sizes") {
  for (const int64_t tokens : {1, 2, 31, 33, 127})
    for (const bool accumulate : {false, true}) {
      Layer<double> layer(shape(tokens, 37, 56));
      const Array<double> y = layer.y, d_x = layer.d_x, d_weight = layer.d_weight;
      layer.forward(accumulate);
      const Array<double> effective = layer.effective_weight();
      const Array<double> want_y = reference::product_transposed(layer.x, effective);
      const double tolerance = rounding(56 + 37, 8, kDoubleEpsilon);
      CHECK(relative_error(layer.y, accumulate ? sum(want_y, y) : want_y) <= tolerance);
      CHECK(relative_error(layer.u, reference::product_transposed(layer.x, layer.a)) <= tolerance);
      layer.backward(accumulate);
      const Array<double> want = reference::product_transposed(layer.d_y, reference::transpose(effective));
      CHECK(relative_error(layer.d_x, accumulate ? sum(want, d_x) : want) <= tolerance);
      const auto d_w =
          reference::product_transposed(reference::transpose(layer.d_y), reference::transpose(layer.x));
      CHECK(relative_error(layer.d_weight, sum(d_w, d_weight)) <= rounding(tokens + 1, 8, kDoubleEpsilon));
    }
}

TEST_CASE("cpu linear: the backward is the slope of the forward, and adds to what was there") {
  Layer<double> layer(shape(9, 12, 16));
  const Array<double> weights = layer.d_y;
  const auto loss = [&] {
    layer.forward(false);
    return project(layer.y, weights);
  };
  loss();
  const Array<double> before_a = layer.d_a, before_w = layer.d_weight, before_b = layer.d_b[2];
  layer.backward(false);
  const auto gained = [](Array<double> after, const Array<double>& before) {
    for (size_t i = 0; i < after.values.size(); ++i) after.values[i] -= before.values[i];
    return after;
  };
  CHECK(gradient_error(layer.x, layer.d_x, loss) < kGradientTolerance);
  CHECK(gradient_error(layer.weight, gained(layer.d_weight, before_w), loss) < kGradientTolerance);
  CHECK(gradient_error(layer.a, gained(layer.d_a, before_a), loss) < kGradientTolerance);
  CHECK(gradient_error(layer.b[2], gained(layer.d_b[2], before_b), loss) < kGradientTolerance);
}

TEST_CASE("cpu linear: float against double") {
  for (const auto& [tokens, in, out] :
       {std::tuple{1, 576, 960}, {33, 576, 960}, {127, 100, 3000}, {300, 64, 40}}) {
    Layer<double> exact(shape(tokens, in, out));
    Layer<float> work(shape(tokens, in, out));
    exact.forward(false), exact.backward(true);
    work.forward(false), work.backward(true);
    // Two products behind one another (A and B), each of its own length.
    CHECK(relative_error(work.y, exact.y) <= rounding(in + 8, 2));
    CHECK(relative_error(work.u, exact.u) <= rounding(in, 2));
    CHECK(relative_error(work.d_x, exact.d_x) <= rounding(out + 8, 2));
    CHECK(relative_error(work.d_weight, exact.d_weight) <= rounding(tokens + 1, 2));
    CHECK(relative_error(work.d_a, exact.d_a) <= rounding(tokens + out, 2));
    CHECK(relative_error(work.d_b[0], exact.d_b[0]) <= rounding(tokens + in, 2));
    work.x(0, 0) = std::numeric_limits<float>::quiet_NaN();
    work.forward(false);
    CHECK(!(relative_error(work.y, exact.y) <= 1));
  }
}

TEST_CASE(
    "cpu linear: a bf16 weight gives the bits of its f32 copy, also in several panels; f64 takes both") {
  for (const auto& [in, out] : {std::pair{37, 56}, {2100, 2200}}) {
    const Array<BFloat16> narrow_weight = as<BFloat16>(random_array<float>(out, in, "bf16 weight"));
    Layer<float> wide(shape(5, in, out));
    Layer<float> narrow(shape(5, in, out));
    Layer<double> exact(shape(5, in, out));
    wide.weight = widen(narrow_weight);
    wide.forward(false), wide.backward(true);
    const Linear linear{narrow_weight.view(), narrow.adapters};
    narrow.ops->linear_forward(narrow.y.view(), narrow.u.view(), narrow.x.view(), linear);
    narrow.ops->linear_backward(narrow.d_x.view(), {{}, narrow.gradients}, narrow.d_y.view(), narrow.x.view(),
                                narrow.u.view(), linear, true);
    CHECK(same_bits(narrow.y, wide.y));
    CHECK(same_bits(narrow.d_x, wide.d_x));
    CHECK(same_bits(narrow.d_a, wide.d_a));
    exact.ops->linear_forward(exact.y.view(), exact.u.view(), exact.x.view(),
                              {narrow_weight.view(), exact.adapters});
    CHECK(relative_error(narrow.y, exact.y) <= rounding(in + 8, 2));
    Array<double> again = exact.y;
    exact.ops->linear_forward(again.view(), exact.u.view(), exact.x.view(),
                              {wide.weight.view(), exact.adapters});
    CHECK(same_bits(again, exact.y));
  }
}

TEST_CASE("cpu linear: without adapters, without d_x, without x") {
  Layer<double> layer(shape(7, 12, 16));
  const Linear bare{layer.weight.view(), {}};
  layer.ops->linear_forward(layer.y.view(), {}, layer.x.view(), bare);
  CHECK(relative_error(layer.y, reference::product_transposed(layer.x, layer.weight)) <=
        rounding(12, 4, kDoubleEpsilon));
  layer.ops->linear_backward(layer.d_x.view(), {}, layer.d_y.view(), {}, {}, bare);
  const auto want = reference::product_transposed(layer.d_y, reference::transpose(layer.weight));
  CHECK(relative_error(layer.d_x, want) <= rounding(16, 4, kDoubleEpsilon));
  // The first layer's input needs no gradient; dA and dB are the same without it.
  Layer<double> with(shape(7, 12, 16)), without(shape(7, 12, 16));
  with.forward(false), without.forward(false);
  with.backward(false);
  without.ops->linear_backward({}, without.gradient(), without.d_y.view(), without.x.view(), without.u.view(),
                               without.linear());
  CHECK(same_bits(with.d_a, without.d_a));
  CHECK(same_bits(with.d_b[1], without.d_b[1]));
}

TEST_CASE("cpu linear: y and x as columns of wider buffers, whose other columns stay") {
  Layer<float> apart(shape(33, 40, 48)), run(shape(33, 40, 48));
  apart.forward(false);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Array<float> x(33, 50, nan), y(33, 60, nan);
  for (int64_t t = 0; t < 33; ++t)
    for (int64_t c = 0; c < 40; ++c) x(t, 3 + c) = run.x(t, c);
  run.ops->linear_forward(y.view().column_slice(5, 48), run.u.view(), x.view().column_slice(3, 40),
                          run.linear());
  for (int64_t t = 0; t < 33; ++t)
    for (int64_t c = 0; c < 60; ++c) {
      if (c < 5 || c >= 53)
        REQUIRE(std::isnan(y(t, c)));
      else
        REQUIRE(y(t, c) == apart.y(t, c - 5));
    }
  apart.backward(false);
  Array<float> d_x(33, 50, nan);
  for (int64_t t = 0; t < 33; ++t)
    for (int64_t c = 0; c < 48; ++c) y(t, 5 + c) = run.d_y(t, c);
  run.ops->linear_backward(d_x.view().column_slice(3, 40), run.gradient(), y.view().column_slice(5, 48),
                           x.view().column_slice(3, 40), run.u.view(), run.linear());
  for (int64_t t = 0; t < 33; ++t)
    for (int64_t c = 0; c < 40; ++c) REQUIRE(d_x(t, 3 + c) == apart.d_x(t, c));
  CHECK(same_bits(run.d_a, apart.d_a));
}

TEST_CASE("cpu linear: equal bits on any number of threads") {
  const Shape s = shape(700, 576, 1100);
  std::vector<std::unique_ptr<Layer<float>>> layers;
  for (int i = 0; i < 2; ++i) layers.push_back(std::make_unique<Layer<float>>(s));
  on_one_and_two_threads([&](int i) {
    layers[static_cast<size_t>(i)]->forward(false);
    layers[static_cast<size_t>(i)]->backward(true);
  });
  CHECK(same_bits(layers[0]->y, layers[1]->y));
  CHECK(same_bits(layers[0]->d_x, layers[1]->d_x));
  CHECK(same_bits(layers[0]->d_a, layers[1]->d_a));
  CHECK(same_bits(layers[0]->d_b[2], layers[1]->d_b[2]));
  CHECK(same_bits(layers[0]->d_weight, layers[1]->d_weight));
}

TEST_CASE("cpu linear: adapters that do not lie behind one another are refused") {
  Layer<double> layer(shape(4, 6, 16));
  std::swap(layer.adapters[0].u_begin, layer.adapters[1].u_begin);
  CHECK_THROWS_WITH_AS(layer.forward(false), doctest::Contains("behind one another"), Error);
}
