// CPU LM head with cross-entropy.
#include "test/kernels/reference.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

template <class T>
struct Case {
  std::unique_ptr<Ops> ops = make_cpu_ops(dtype_of<T>());
  Array<T> hidden, weight, nll, d_hidden, d_weight;
  Array<int32_t> targets;
  double loss_scale = 0.25;

  Case(int64_t tokens, int64_t width, int64_t vocabulary, double scale = 1.0)
      : hidden(random_array<T>(tokens, width, "hidden", scale)),
        weight(random_array<T>(vocabulary, width, "weight", scale)),
        nll(tokens, 1, std::numeric_limits<T>::quiet_NaN()),
        d_hidden(tokens, width, std::numeric_limits<T>::quiet_NaN()),
        d_weight(vocabulary, width),
        targets(tokens, 1) {
    const RandomStream random(3, "targets");
    for (int64_t t = 0; t < tokens; ++t) {
      const auto draw = static_cast<uint64_t>(t);
      // A third is not scored, by any negative number.
      targets(t, 0) = static_cast<int32_t>(random.below(2 * draw, static_cast<uint64_t>(vocabulary)));
      if (random.below(2 * draw + 1, 3) == 0) targets(t, 0) = t % 2 ? -1 : -100;
    }
  }
  void run() {
    ops->head_cross_entropy(nll.flat(), d_hidden.view(), d_weight.view(), hidden.view(), weight.view(),
                            targets.flat(), loss_scale);
  }
};

}  // namespace

TEST_CASE("cpu head: double the formula, float no worse than three times plain loops") {
  for (const auto& [tokens, width, vocabulary] :
       {std::tuple{1, 8, 5}, {2, 8, 100}, {31, 16, 333}, {33, 5, 1}, {127, 24, 1000}, {600, 8, 50}}) {
    Case<double> exact(tokens, width, vocabulary);
    exact.run();
    const auto dense = reference::head(exact.hidden, exact.weight, exact.targets, exact.loss_scale);
    const double tolerance = rounding(width + vocabulary + tokens, 8, kDoubleEpsilon);
    CHECK(relative_error(exact.nll, dense.nll) <= tolerance);
    CHECK(relative_error(exact.d_hidden, dense.d_hidden) <= tolerance);
    CHECK(relative_error(exact.d_weight, dense.d_weight) <= tolerance);
    Case<float> work(tokens, width, vocabulary);
    work.run();
    const auto plain = reference::head(work.hidden, work.weight, work.targets, work.loss_scale);
    const auto close = [&](const Array<float>& got, const Array<float>& loops, const Array<double>& truth) {
      return relative_error(got, truth) <= std::max(3 * relative_error(loops, truth), rounding(1, 2));
    };
    CHECK(close(work.nll, plain.nll, exact.nll));
    CHECK(close(work.d_hidden, plain.d_hidden, exact.d_hidden));
    CHECK(close(work.d_weight, plain.d_weight, exact.d_weight));
  }
}

TEST_CASE("cpu head: a vocabulary of several panels, in f32 and bf16") {
  // 2^21 elements fill a panel.
  constexpr int64_t kWidth = 700, kVocabulary = 7001;
  Case<float> wide(20, kWidth, kVocabulary, 0.1), narrow(20, kWidth, kVocabulary, 0.1);
  const Array<BFloat16> weight = as<BFloat16>(wide.weight);
  wide.weight = widen(weight);
  Case<double> exact(20, kWidth, kVocabulary, 0.1);
  exact.weight = as<double>(wide.weight);
  wide.run(), exact.run();
  narrow.ops->head_cross_entropy(narrow.nll.flat(), narrow.d_hidden.view(), narrow.d_weight.view(),
                                 narrow.hidden.view(), weight.view(), narrow.targets.flat(),
                                 narrow.loss_scale);
  CHECK(same_bits(narrow.nll, wide.nll));
  CHECK(same_bits(narrow.d_hidden, wide.d_hidden));
  CHECK(same_bits(narrow.d_weight, wide.d_weight));
  CHECK(relative_error(wide.nll, exact.nll) <= rounding(kWidth, 1));
  CHECK(relative_error(wide.d_hidden, exact.d_hidden) <= rounding(kWidth, 4));
  CHECK(relative_error(wide.d_weight, exact.d_weight) <= rounding(kWidth, 4));
  Array<float> nll(20, 1);
  wide.ops->head_cross_entropy(nll.flat(), {}, {}, wide.hidden.view(), wide.weight.view(),
                               wide.targets.flat(), 1);
  CHECK(same_bits(nll, wide.nll));
}

TEST_CASE("cpu head: the gradients are the slopes of the scaled loss") {
  Case<double> head(6, 7, 13);
  const auto loss = [&] {
    head.ops->head_cross_entropy(head.nll.flat(), {}, {}, head.hidden.view(), head.weight.view(),
                                 head.targets.flat(), 1);
    double sum = 0;
    for (const double nll : head.nll.values) sum += nll;
    return head.loss_scale * sum;
  };
  head.run();
  CHECK(gradient_error(head.hidden, head.d_hidden, loss) < kGradientTolerance);
  CHECK(gradient_error(head.weight, head.d_weight, loss) < kGradientTolerance);
  const Array<double> once = head.d_weight;
  head.run();  // adds to d_weight, overwrites d_hidden
  for (size_t i = 0; i < once.values.size(); ++i)
    REQUIRE(std::fabs(head.d_weight.values[i] - 2 * once.values[i]) < 1e-15);
}

TEST_CASE("cpu head: rows without a target have no loss and no gradient; nothing scored at all is fine") {
  Case<float> head(300, 8, 40);
  head.run();
  for (int64_t t = 0; t < 300; ++t)
    if (head.targets(t, 0) < 0) {
      REQUIRE(head.nll(t, 0) == 0);
      for (int64_t c = 0; c < 8; ++c) REQUIRE(head.d_hidden(t, c) == 0);
    }
  std::fill(head.targets.values.begin(), head.targets.values.end(), -1);
  const Array<float> before = head.d_weight;
  head.run();
  for (const float nll : head.nll.values) REQUIRE(nll == 0);
  for (const float d : head.d_hidden.values) REQUIRE(d == 0);
  CHECK(same_bits(before, head.d_weight));
  head.targets(7, 0) = 40;
  CHECK_THROWS_WITH_AS(head.run(), doctest::Contains("token 7 has target 40"), Error);
}

TEST_CASE("cpu head: far logits stay finite, a NaN shows, and bits do not depend on threads") {
  Case<float> far(9, 16, 64, 40.0);  // logits of some ten thousands
  far.run();
  CHECK(relative_error(far.nll, far.nll) == 0);
  CHECK(relative_error(far.d_hidden, far.d_hidden) == 0);
  far.hidden(0, 0) = std::numeric_limits<float>::quiet_NaN();
  far.targets(0, 0) = 3;
  far.run();
  CHECK(std::isnan(far.nll(0, 0)));
  CHECK(std::isnan(far.d_hidden(0, 0)));

  Array<float> nll[2], d_hidden[2], d_weight[2];
  on_one_and_two_threads([&](int i) {
    Case<float> head(500, 64, 2000);
    head.run();
    nll[i] = head.nll, d_hidden[i] = head.d_hidden, d_weight[i] = head.d_weight;
  });
  CHECK(same_bits(nll[0], nll[1]));
  CHECK(same_bits(d_hidden[0], d_hidden[1]));
  CHECK(same_bits(d_weight[0], d_weight[1]));
}
