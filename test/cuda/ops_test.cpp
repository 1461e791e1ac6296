#include "test/cuda/gpu_test.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// Small shapes are repeated often, large ones are there for their borders.
int repeats_of(int64_t rows) { return rows == 127 ? kManyRepeats : 2; }

Values ids_below(int64_t count, int64_t bound, std::string_view name) {
  const RandomStream random(3, name);
  Values values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    // Half of them among five ids: text repeats itself.
    const auto some = static_cast<uint64_t>(i % 2 ? bound : std::min<int64_t>(5, bound));
    values[i] = static_cast<double>(random.below(i, some));
  }
  return values;
}

}  // namespace

TEST_CASE("RMSNorm forward, with and without a residual, rebuilt and backward") {
  for (const int64_t rows : kRaggedRows) {
    for (const auto& [hidden, padding] :
         {std::pair<int64_t, int64_t>{192, 64}, {49, 3}, {4096, 0}, {8192, 0}}) {
      if (rows > 100 && hidden > 1000) continue;
      CAPTURE(rows);
      CAPTURE(hidden);
      const int64_t n = rows * hidden;
      const Argument x{"x", Kind::act, rows, hidden, normal_values(n, "x", 2.0), false, padding};
      const Argument delta{"delta", Kind::act, rows, hidden, normal_values(n, "delta"), false, padding};
      const Argument gain{"gain", Kind::act, hidden, 1, normal_values(hidden, "gain", 0.2, 1.0),
                          false,  0,         true};
      const Argument sum{"sum", Kind::act, rows, hidden, {}, true, padding};
      const Argument normed{"normed", Kind::act, rows, hidden, {}, true, padding};
      const Argument reciprocal{"reciprocal", Kind::stat, rows, 1, {}, true, 0, true};
      check_op(
          {sum, normed, reciprocal, x, delta, gain},
          [](Ops& ops, const auto& t) {
            ops.residual_rmsnorm_forward(t[0], t[1], t[2], t[3], t[4], t[5], 1e-5);
          },
          repeats_of(rows),
          [&](const std::vector<Argument>& a, DType activation) {
            // The norm is that of the rounded sum.
            Values total = a[3].values;
            for (size_t i = 0; i < total.size(); ++i)
              total[i] = rounded(total[i] + a[4].values[i], activation);
            std::vector<Argument> rest{a[1], a[2], a[3], a[5]};
            rest[2].values = total;
            std::vector<Values> outputs = plain_evaluation(
                rest,
                [](Ops& ops, const auto& t) {
                  ops.residual_rmsnorm_forward({}, t[0], t[1], t[2], {}, t[3], 1e-5);
                },
                activation);
            outputs.insert(outputs.begin(), total);
            return outputs;
          });
      check_op(
          {normed, reciprocal, x, gain},
          [](Ops& ops, const auto& t) { ops.residual_rmsnorm_forward({}, t[0], t[1], t[2], {}, t[3], 1e-5); },
          repeats_of(rows));
      Argument known = reciprocal;
      known.output = false;
      known.values.resize(static_cast<size_t>(rows));
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0;
        for (int64_t c = 0; c < hidden; ++c)
          squares += std::pow(x.values[static_cast<size_t>(r * hidden + c)], 2);
        known.values[static_cast<size_t>(r)] = 1 / std::sqrt(squares / static_cast<double>(hidden) + 1e-5);
      }
      check_op(
          {normed, x, known, gain},
          [](Ops& ops, const auto& t) { ops.rmsnorm_rebuild(t[0], t[1], t[2], t[3]); }, repeats_of(rows));
      const Argument d_x{"d_x", Kind::act, rows, hidden, normal_values(n, "d_x"), true, padding};
      const Argument d_gain{"d_gain", Kind::stat, hidden, 1, normal_values(hidden, "d_gain"), true, 0, true};
      const Argument d_normed{"d_normed", Kind::act, rows, hidden, normal_values(n, "d_normed"),
                              false,      padding};
      check_op(
          {d_x, d_gain, d_normed, x, known, gain},
          [](Ops& ops, const auto& t) { ops.rmsnorm_backward(t[0], t[1], t[2], t[3], t[4], t[5]); },
          repeats_of(rows));
    }
  }
}

TEST_CASE("SwiGLU forward, backward and backward in place") {
  for (const int64_t rows : kRaggedRows) {
    for (const auto& [width, padding] : {std::pair<int64_t, int64_t>{88, 8}, {57, 1}, {11008, 0}}) {
      if (rows > 100 && width > 1000) continue;
      CAPTURE(rows);
      CAPTURE(width);
      const Argument gate_up{
          "gate_up", Kind::act, rows, 2 * width, normal_values(2 * rows * width, "gate up", 3.0),
          false,     padding};
      check_op(
          {{"out", Kind::act, rows, width, {}, true, padding}, gate_up},
          [](Ops& ops, const auto& t) { ops.swiglu_forward(t[0], t[1]); }, repeats_of(rows));
      const Argument d_out{"d_out", Kind::act, rows, width, normal_values(rows * width, "d out"),
                           false,   padding};
      check_op(
          {{"d_gate_up", Kind::act, rows, 2 * width, {}, true, padding}, d_out, gate_up},
          [](Ops& ops, const auto& t) { ops.swiglu_backward(t[0], t[1], t[2]); }, repeats_of(rows));
      Argument both = gate_up;
      both.output = true;
      check_op(
          {both, d_out}, [](Ops& ops, const auto& t) { ops.swiglu_backward(t[0], t[1], t[0]); },
          repeats_of(rows));
    }
  }
}

TEST_CASE("RoPE in place on a column slice, and back") {
  for (const int64_t rows : kRaggedRows) {
    for (const auto& [head_dim, heads, padding] :
         {std::tuple<int64_t, int64_t, int64_t>{64, 2, 64}, {128, 1, 128}, {6, 3, 5}}) {
      CAPTURE(rows);
      CAPTURE(head_dim);
      constexpr int64_t kAngles = 300;
      Values cosines(static_cast<size_t>(kAngles * head_dim / 2)), sines = cosines;
      for (size_t i = 0; i < cosines.size(); ++i) {
        const double angle = static_cast<double>(i) * 0.37;
        cosines[i] = std::cos(angle), sines[i] = std::sin(angle);
      }
      for (const bool inverse : {false, true})
        check_op(
            {{"x", Kind::act, rows, heads * head_dim, normal_values(rows * heads * head_dim, "x"), true,
              padding},
             {"positions", Kind::i32, rows, 1, ids_below(rows, kAngles, "positions"), false, 0, true},
             {"cosines", Kind::stat, kAngles, head_dim / 2, cosines},
             {"sines", Kind::stat, kAngles, head_dim / 2, sines}},
            [&](Ops& ops, const auto& t) { ops.rope(t[0], t[1], t[2], t[3], head_dim, inverse); },
            repeats_of(rows));
    }
  }
}

TEST_CASE("embedding forward and backward, repeated ids") {
  for (const int64_t rows : kRaggedRows) {
    for (const auto& [vocabulary, hidden, padding] :
         {std::tuple<int64_t, int64_t, int64_t>{1000, 72, 8}, {37, 45, 1}, {1, 8, 0}, {37, 1204, 4}}) {
      if (rows > 1000 && hidden > 1000) continue;
      CAPTURE(rows);
      CAPTURE(vocabulary);
      const Argument ids{"ids", Kind::i32, rows, 1, ids_below(rows, vocabulary, "ids"), false, 0, true};
      check_op(
          {{"out", Kind::act, rows, hidden, {}, true, padding},
           {"table", Kind::act, vocabulary, hidden, normal_values(vocabulary * hidden, "table")},
           ids},
          [](Ops& ops, const auto& t) { ops.embedding_forward(t[0], t[1], t[2]); }, repeats_of(rows));
      check_op(
          {{"d_table", Kind::stat, vocabulary, hidden, normal_values(vocabulary * hidden, "d table"), true},
           {"d_out", Kind::act, rows, hidden, normal_values(rows * hidden, "d out"), false, padding},
           ids},
          [](Ops& ops, const auto& t) { ops.embedding_backward(t[0], t[1], t[2]); }, repeats_of(rows));
    }
  }
}

TEST_CASE("AdamW over three steps, the working copy rounded from the master") {
  constexpr int64_t kTerms = 9;  // roundings of a moment: three a step
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {31, 33}, {4097, 64}, {1, 4095}}) {
    CAPTURE(rows);
    const int64_t n = rows * columns;
    Values squares = normal_values(n, "v", 1e-3);
    for (double& x : squares) x = std::fabs(x);
    check_op(
        {{"working", Kind::act, rows, columns, {}, true},
         {"master", Kind::stat, rows, columns, normal_values(n, "master"), true, 0, false, kTerms},
         {"gradient", Kind::stat, rows, columns, normal_values(n, "gradient", 0.1)},
         {"m", Kind::stat, rows, columns, normal_values(n, "m", 0.01), true, 0, false, kTerms},
         {"v", Kind::stat, rows, columns, squares, true, 0, false, kTerms}},
        [](Ops& ops, const auto& t) {
          AdamWStep step{1e-2, 0.9, 0.95, 1e-8, 0.1, 1, 0.5};
          for (step.step = 1; step.step <= 3; ++step.step) ops.adamw(t[0], t[1], t[2], t[3], t[4], step);
        },
        2);
  }
}

TEST_CASE("the sum of squares is exact to double rounding, the same on every run, and shows NaN") {
  Ops& gpu = *backends().f32;
  for (const int64_t count : {int64_t{1}, int64_t{1023}, int64_t{65536}, int64_t{65537}, int64_t{3000001}}) {
    CAPTURE(count);
    Argument x{"x", Kind::stat, count, 1, rounded(normal_values(count, "x"), DType::f32), false, 0, true};
    double expected = 0;
    for (const double value : x.values) expected += value * value;
    double got = 0;
    const Op sum = [&](Ops& ops, const auto& t) { got = ops.sum_of_squares(t[0]); };
    evaluate(gpu, {x}, sum);
    CHECK(std::fabs(got - expected) <= 1e-12 * expected);
    const double first = got;
    for (int i = 0; i < kManyRepeats; ++i) {
      evaluate(gpu, {x}, sum);
      CHECK(got == first);
    }
    x.values[static_cast<size_t>(count / 2)] = std::nan("");
    evaluate(gpu, {x}, sum);
    CHECK(std::isnan(got));
  }
}

TEST_CASE("attention, all patterns, ragged sequences, grouped heads") {
  constexpr int64_t kHeads = 6, kKvHeads = 2;
  const std::vector<double> offsets{0, 31, 32, 160};
  constexpr int64_t kTokens = 160, kTerms = 128 * kHeads / kKvHeads;
  for (const int64_t head_dim : {8, 64, 128}) {
    for (const AttentionPattern& pattern :
         {AttentionPattern{}, AttentionPattern{32, 4, 4, false}, AttentionPattern{32, 3, 0, true},
          AttentionPattern{16, 6, 1, false}}) {
      CAPTURE(head_dim);
      CAPTURE(pattern.group_size);
      const int64_t width = kHeads * head_dim, kv_width = kKvHeads * head_dim;
      const Argument q{"q", Kind::act, kTokens, width, normal_values(kTokens * width, "q"), false, 16};
      const Argument k{"k", Kind::act, kTokens, kv_width, normal_values(kTokens * kv_width, "k"), false, 8};
      const Argument v{"v", Kind::act, kTokens, kv_width, normal_values(kTokens * kv_width, "v"), false, 8};
      const Argument starts{"offsets", Kind::i64, 4, 1, offsets, false, 0, true};
      const Argument out{"out", Kind::act, kTokens, width, {}, true};
      const Argument lse{"lse", Kind::stat, kHeads, kTokens, {}, true};
      const auto view = [](const Tensor& t) { return SequenceView{t, {}, 3, 128}; };
      check_op({out, lse, q, k, v, starts}, [&](Ops& ops, const auto& t) {
        ops.attention_forward(t[0], t[1], t[2], t[3], t[4], view(t[5]), pattern, head_dim);
      });
      const std::vector<Values> known =
          evaluate(*backends().oracle, {out, lse, q, k, v, starts}, [&](Ops& ops, const auto& t) {
            ops.attention_forward(t[0], t[1], t[2], t[3], t[4], view(t[5]), pattern, head_dim);
          });
      const Argument given_out{"out", Kind::act, kTokens, width, known[0]};
      const Argument given_lse{"lse", Kind::stat, kHeads, kTokens, known[1]};
      check_op(
          {{"d_q", Kind::act, kTokens, width, {}, true, 16, false, 128},
           {"d_k", Kind::act, kTokens, kv_width, {}, true, 8, false, kTerms},
           {"d_v", Kind::act, kTokens, kv_width, {}, true, 8, false, kTerms},
           {"d_out", Kind::act, kTokens, width, normal_values(kTokens * width, "d out")},
           q,
           k,
           v,
           given_out,
           given_lse,
           starts},
          [&](Ops& ops, const auto& t) {
            ops.attention_backward(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], view(t[9]), pattern,
                                   head_dim);
          },
          kManyRepeats);
    }
  }
}

TEST_CASE("transfers: large, rounded on the way, and copies of slices") {
  Ops& gpu = *backends().bf16;
  constexpr int64_t kCount = 5'000'003;  // more than the staging memory, at no multiple of it
  std::vector<float> sent(kCount), received(kCount);
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<float>(i % 100'003);
  void* const memory = gpu.allocate(kCount * 4);
  const Tensor tensor(memory, DType::f32, {kCount}, Device::cuda);
  gpu.download(received.data(), tensor);
  CHECK(std::all_of(received.begin(), received.end(), [](float x) { return x == 0; }));
  gpu.upload(tensor, sent.data());
  gpu.download(received.data(), tensor);
  CHECK(sent == received);
  gpu.zero(tensor);
  gpu.download(received.data(), tensor);
  CHECK(std::all_of(received.begin(), received.end(), [](float x) { return x == 0; }));
  gpu.release(memory);
  for (const int64_t padding : {0, 5}) {
    check_op({{"to", Kind::act, 33, 47, {}, true, padding},
              {"from", Kind::stat, 33, 47, normal_values(33 * 47, "from"), false, padding}},
             [](Ops& ops, const auto& t) { ops.copy(t[0], t[1]); });
    check_op({{"to", Kind::act, 33, 47, {}, true, padding},
              {"from", Kind::act, 33, 47, normal_values(33 * 47, "from"), false, 2 * padding}},
             [](Ops& ops, const auto& t) { ops.copy(t[0], t[1]); });
    check_op({{"to", Kind::act, 33, 47, {}, true, padding}}, [](Ops& ops, const auto& t) { ops.zero(t[0]); });
  }
}

TEST_CASE("what the GPU cannot do is said: too much memory, ids and targets outside of the vocabulary") {
  Ops& gpu = *backends().bf16;
  const auto code_of = [](const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return error.code;
    }
    return ExitCode::ok;
  };
  CHECK(code_of([&] { gpu.allocate(int64_t{1} << 45); }) == ExitCode::does_not_fit);
  const Argument out{"out", Kind::act, 3, 8, {}, true};
  const Argument table{"table", Kind::act, 5, 8, normal_values(40, "table")};
  for (const double bad : {5.0, -1.0}) {
    const Argument ids{"ids", Kind::i32, 3, 1, {0, bad, 4}, false, 0, true};
    CHECK(code_of([&] {
            evaluate(gpu, {out, table, ids},
                     [](Ops& ops, const auto& t) { ops.embedding_forward(t[0], t[1], t[2]); });
          }) == ExitCode::input);
    const Argument d_table{"d_table", Kind::stat, 5, 8, normal_values(40, "d table"), true};
    const Argument d_out{"d_out", Kind::act, 3, 8, normal_values(24, "d out")};
    CHECK(code_of([&] {
            evaluate(gpu, {d_table, d_out, ids},
                     [](Ops& ops, const auto& t) { ops.embedding_backward(t[0], t[1], t[2]); });
          }) == ExitCode::input);
  }
  const Argument targets{"targets", Kind::i32, 3, 1, {0, 5, 4}, false, 0, true};
  CHECK(code_of([&] {
          evaluate(
              gpu,
              {{"nll", Kind::stat, 3, 1, {}, true, 0, true},
               {"hidden", Kind::act, 3, 8, normal_values(24, "hidden")},
               table,
               targets},
              [](Ops& ops, const auto& t) { ops.head_cross_entropy(t[0], {}, {}, t[1], t[2], t[3], 1.0); });
        }) == ExitCode::input);
  gpu.synchronize();  // the fault is gone once it was thrown
}
