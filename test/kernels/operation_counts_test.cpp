#include "kernels/operation_counts.h"

#include <doctest/doctest.h>

#include "test/model/toy_model.h"

using namespace sinklora;
using namespace sinklora::test;

TEST_CASE("visible pairs are those that visible() says, all patterns, ragged lengths") {
  for (const AttentionOptions& options : all_patterns())
    for (const int64_t context : {1, 2, 7, 31, 64, 97})
      for (const int64_t heads : {1, 3, 8})
        for (const int64_t length : {context, context / 2, context + 13}) {
          const AttentionPattern pattern = make_pattern(options, context, heads);
          int64_t pairs = 0;
          for (int64_t head = 0; head < heads; ++head)
            for (int64_t i = 0; i < length; ++i)
              for (int64_t j = 0; j < length; ++j) pairs += visible(pattern, head, i, j, length);
          CAPTURE(options.kind);
          CAPTURE(context);
          CAPTURE(length);
          CHECK(visible_pairs(pattern, heads, length) == pairs);
        }
}

TEST_CASE("operations of a linear are two for every product that its formula has") {
  constexpr int64_t kTokens = 5, kIn = 7, kOut = 11, kRank = 3, kRows = 4;
  double number = 0;  // views are counted, never read
  const Tensor weight(&number, DType::f64, {kOut, kIn});
  const LinearAdapter adapter{{&number, DType::f64, {kRank, kIn}}, {&number, DType::f64, {kRows, kRank}}};
  const AdapterGradient adapter_gradient{adapter.a, adapter.b};
  const Linear plain{weight, {}}, adapted{weight, {&adapter, 1}};
  const LinearGradient frozen{{}, {&adapter_gradient, 1}}, trained{weight, {}};
  constexpr double kWhole = 2.0 * kTokens * kIn * kOut;
  constexpr double kA = 2.0 * kTokens * kRank * kIn, kB = 2.0 * kTokens * kRank * kRows;
  CHECK(linear_forward_operations(kTokens, plain) == kWhole);
  CHECK(linear_forward_operations(kTokens, adapted) == kWhole + kA + kB);
  CHECK(linear_backward_operations(kTokens, plain, {}, true) == kWhole);
  CHECK(linear_backward_operations(kTokens, plain, trained, true) == 2 * kWhole);
  CHECK(linear_backward_operations(kTokens, adapted, frozen, true) == kWhole + 2 * kA + 2 * kB);
  CHECK(linear_backward_operations(kTokens, adapted, frozen, false) == kA + 2 * kB);
  CHECK(head_operations(kTokens, weight, false, false) == kWhole);
  CHECK(head_operations(kTokens, weight, true, true) == 3 * kWhole);
}
