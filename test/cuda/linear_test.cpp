// Linear layers and the LM head: products on tensor cores against plain loops of the same precision.
#include <omp.h>

#include "kernels/cuda/cuda_ops.h"
#include "test/cuda/gpu_test.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// op(a) [m, k] times op(b) [k, n], one float sum after the other: the plain evaluation.
struct Factor {
  const Values& values;
  int64_t stride, offset = 0;
  bool transposed = false;
  float at(int64_t r, int64_t c) const {
    return static_cast<float>(
        values[static_cast<size_t>(offset + (transposed ? c * stride + r : r * stride + c))]);
  }
};
Values product(int64_t m, int64_t n, int64_t k, const Factor& a, const Factor& b) {
  Values result(static_cast<size_t>(m * n));
#pragma omp parallel for
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += a.at(i, l) * b.at(l, j);
      result[static_cast<size_t>(i * n + j)] = static_cast<double>(sum);
    }
  return result;
}

struct AdapterShape {
  int64_t row_begin, rows, rank;
  double scale;
};
struct LinearShape {
  int64_t tokens, in, out;
  std::vector<AdapterShape> adapters;
  int64_t padding = 0;
  int64_t rank() const {
    int64_t sum = 0;
    for (const AdapterShape& adapter : adapters) sum += adapter.rank;
    return sum;
  }
};

// Arguments of the tests below: W, A of all adapters, B of each.
struct Weights {
  Argument weight, a;
  std::vector<Argument> b;
};
Weights weights_of(const LinearShape& s) {
  Weights w{{"W", Kind::act, s.out, s.in, normal_values(s.out * s.in, "W", 0.1)},
            {"A", Kind::act, s.rank(), s.in, normal_values(s.rank() * s.in, "A", 0.1)},
            {}};
  for (const AdapterShape& adapter : s.adapters)
    w.b.push_back({"B", Kind::act, adapter.rows, adapter.rank,
                   normal_values(adapter.rows * adapter.rank, fmt::format("B {}", adapter.row_begin), 0.3)});
  return w;
}
std::vector<LinearAdapter> adapters_of(const LinearShape& s, const Tensor& a, const Tensor* b) {
  std::vector<LinearAdapter> adapters;
  int64_t begin = 0;
  for (const AdapterShape& adapter : s.adapters) {
    adapters.push_back({a.row_slice(begin, adapter.rank), *b++, adapter.row_begin, begin, adapter.scale});
    begin += adapter.rank;
  }
  return adapters;
}

void check_forward(const LinearShape& s, bool accumulate, int repeats) {
  const int64_t rank = s.rank();
  const Weights w = weights_of(s);
  std::vector<Argument> arguments{
      {"y", Kind::act, s.tokens, s.out, accumulate ? normal_values(s.tokens * s.out, "y") : Values{}, true,
       s.padding},
      {"u", Kind::act, s.tokens, std::max<int64_t>(rank, 1), {}, rank > 0},
      {"x", Kind::act, s.tokens, s.in, normal_values(s.tokens * s.in, "x"), false, s.padding},
      w.weight,
      rank > 0 ? w.a : w.weight};
  arguments.insert(arguments.end(), w.b.begin(), w.b.end());
  const Plain plain = [&](const std::vector<Argument>& a, DType activation) {
    Values y = product(s.tokens, s.out, s.in, {a[2].values, s.in}, {a[3].values, s.in, 0, true});
    Values u =
        rounded(product(s.tokens, rank, s.in, {a[2].values, s.in}, {a[4].values, s.in, 0, true}), activation);
    int64_t begin = 0;
    for (size_t i = 0; i < s.adapters.size(); ++i) {
      const AdapterShape& adapter = s.adapters[i];
      const Values part = product(s.tokens, adapter.rows, adapter.rank, {u, rank, begin},
                                  {a[5 + i].values, adapter.rank, 0, true});
      for (int64_t t = 0; t < s.tokens; ++t)
        for (int64_t r = 0; r < adapter.rows; ++r)
          y[static_cast<size_t>(t * s.out + adapter.row_begin + r)] +=
              adapter.scale * part[static_cast<size_t>(t * adapter.rows + r)];
      begin += adapter.rank;
    }
    if (accumulate)
      for (size_t i = 0; i < y.size(); ++i) y[i] += a[0].values[i];
    std::vector<Values> outputs{rounded(y, activation)};
    if (rank > 0) outputs.push_back(u);
    return outputs;
  };
  check_op(
      arguments,
      [&](Ops& ops, const std::vector<Tensor>& t) {
        const auto adapters = adapters_of(s, t[4], t.data() + 5);
        ops.linear_forward(t[0], rank > 0 ? t[1] : Tensor{}, t[2], {t[3], adapters}, accumulate);
      },
      repeats, plain);
}

void check_backward(const LinearShape& s, bool accumulate, bool weight_gradient, int repeats) {
  const int64_t rank = s.rank();
  const Weights w = weights_of(s);
  std::vector<Argument> arguments{
      {"d_x", Kind::act, s.tokens, s.in, accumulate ? normal_values(s.tokens * s.in, "d x") : Values{}, true,
       s.padding},
      {"dW", Kind::stat, s.out, s.in, normal_values(s.out * s.in, "dW"), weight_gradient},
      {"dA", Kind::stat, std::max<int64_t>(rank, 1), s.in,
       normal_values(std::max<int64_t>(rank, 1) * s.in, "dA"), rank > 0},
      {"d_y", Kind::act, s.tokens, s.out, normal_values(s.tokens * s.out, "d y"), false, s.padding},
      {"x", Kind::act, s.tokens, s.in, normal_values(s.tokens * s.in, "x"), false, s.padding},
      {"u", Kind::act, s.tokens, std::max<int64_t>(rank, 1),
       normal_values(s.tokens * std::max<int64_t>(rank, 1), "u")},
      w.weight,
      rank > 0 ? w.a : w.weight};
  const size_t first_b = arguments.size();
  arguments.insert(arguments.end(), w.b.begin(), w.b.end());
  for (const Argument& b : w.b) {
    arguments.push_back(b);
    arguments.back().name = "dB", arguments.back().kind = Kind::stat, arguments.back().output = true;
  }
  const Plain plain = [&](const std::vector<Argument>& a, DType activation) {
    const auto add = [](Values& to, const Values& from, double factor) {
      for (size_t i = 0; i < to.size(); ++i) to[i] += factor * from[i];
    };
    Values d_x = product(s.tokens, s.in, s.out, {a[3].values, s.out}, {a[6].values, s.in});
    if (accumulate) add(d_x, a[0].values, 1);
    Values d_w = a[1].values, d_a = a[2].values;
    if (weight_gradient)
      add(d_w, product(s.out, s.in, s.tokens, {a[3].values, s.out, 0, true}, {a[4].values, s.in}), 1);
    std::vector<Values> d_b;
    Values d_u(static_cast<size_t>(s.tokens * rank));
    int64_t begin = 0;
    for (size_t i = 0; i < s.adapters.size(); ++i) {
      const AdapterShape& adapter = s.adapters[i];
      const Factor d_y{a[3].values, s.out, adapter.row_begin},
          d_y_t{a[3].values, s.out, adapter.row_begin, true};
      const Values part =
          product(s.tokens, adapter.rank, adapter.rows, d_y, {a[first_b + i].values, adapter.rank});
      for (int64_t t = 0; t < s.tokens; ++t)
        for (int64_t r = 0; r < adapter.rank; ++r)
          d_u[static_cast<size_t>(t * rank + begin + r)] =
              rounded(adapter.scale * part[static_cast<size_t>(t * adapter.rank + r)], activation);
      Values own = a[first_b + s.adapters.size() + i].values;
      add(own, product(adapter.rows, adapter.rank, s.tokens, d_y_t, {a[5].values, rank, begin}),
          adapter.scale);
      d_b.push_back(rounded(own, DType::f32));
      begin += adapter.rank;
    }
    std::vector<Values> outputs;
    if (rank > 0) {
      add(d_x, product(s.tokens, s.in, rank, {d_u, rank}, {a[7].values, s.in}), 1);
      add(d_a, product(rank, s.in, s.tokens, {d_u, rank, 0, true}, {a[4].values, s.in}), 1);
    }
    outputs.push_back(rounded(d_x, activation));
    if (weight_gradient) outputs.push_back(rounded(d_w, DType::f32));
    if (rank > 0) outputs.push_back(rounded(d_a, DType::f32));
    outputs.insert(outputs.end(), d_b.begin(), d_b.end());
    return outputs;
  };
  check_op(
      arguments,
      [&](Ops& ops, const std::vector<Tensor>& t) {
        const auto adapters = adapters_of(s, t[7], t.data() + first_b);
        std::vector<AdapterGradient> gradients;
        for (size_t i = 0; i < adapters.size(); ++i)
          gradients.push_back(
              {t[2].row_slice(adapters[i].u_begin, adapters[i].a.rows()), t[first_b + adapters.size() + i]});
        ops.linear_backward(t[0], {weight_gradient ? t[1] : Tensor{}, gradients}, t[3], t[4],
                            rank > 0 ? t[5] : Tensor{}, {t[6], adapters}, accumulate);
      },
      repeats, plain);
}

const std::vector<AdapterShape> kQueryValue{{0, 64, 8, 2.0}, {96, 32, 8, 2.0}};  // k without an adapter
const std::vector<AdapterShape> kThree{{0, 64, 4, 2.0}, {64, 32, 8, 0.7}, {96, 32, 16, 1.3}};
const std::vector<AdapterShape> kWhole{{0, 128, 8, 2.0}};

}  // namespace

TEST_CASE("linear forward and backward: ragged rows, adapters, slices, accumulation") {
  for (const int64_t tokens : kRaggedRows) {
    CAPTURE(tokens);
    const int repeats = tokens == 127 ? kManyRepeats : 2;
    int64_t n = 0;
    for (const auto& adapters : {std::vector<AdapterShape>{}, kWhole, kQueryValue, kThree}) {
      if (tokens > 1000 && n == 1) continue;
      const bool accumulate = n % 2 == 1;
      check_forward({tokens, 192, 128, adapters, 64 * (n % 2)}, accumulate, repeats);
      check_backward({tokens, 192, 128, adapters, 64 * (n % 2)}, accumulate, n == 0, repeats);
      ++n;
    }
  }
}

TEST_CASE("linear with odd widths and unaligned slices") {
  for (const int64_t tokens : {1, 33, 127}) {
    CAPTURE(tokens);
    check_forward({tokens, 49, 61, {{3, 21, 3, 2.0}, {30, 31, 5, 1.0}}, 3}, false, 3);
    check_backward({tokens, 49, 61, {{3, 21, 3, 2.0}, {30, 31, 5, 1.0}}, 3}, true, true, 3);
  }
}

TEST_CASE("a linear of no rows does nothing") {
  for (const DType type : {DType::f32, DType::bf16}) {
    Ops& gpu = type == DType::f32 ? *backends().f32 : *backends().bf16;
    void* const memory = gpu.allocate(64 * 64 * 4);
    const Tensor weight(memory, type, {64, 64}, Device::cuda), none(memory, type, {0, 64}, Device::cuda);
    CHECK_NOTHROW(gpu.linear_forward(none, {}, none, {weight, {}}));
    CHECK_NOTHROW(gpu.linear_backward(none, {}, none, none, {}, {weight, {}}));
    gpu.release(memory);
  }
}

TEST_CASE("LoRA ranks from 1 to 64") {
  for (const int64_t rank : {1, 4, 8, 16, 64}) {
    CAPTURE(rank);
    check_forward({127, 256, 384, {{0, 128, rank, 2.0}, {128, 128, rank, 2.0}, {256, 128, rank, 2.0}}}, false,
                  3);
    check_backward({127, 256, 384, {{0, 128, rank, 2.0}, {128, 128, rank, 2.0}, {256, 128, rank, 2.0}}},
                   false, false, 3);
  }
}

TEST_CASE("frozen weights of the other type") {
  // bf16 numbers are exact in f32: an f32 backend must get the same bits from either.
  const int64_t tokens = 33, in = 64, out = 48;
  const Values x = normal_values(tokens * in, "x"), w = rounded(normal_values(out * in, "W"), DType::bf16);
  const Argument y{"y", Kind::act, tokens, out, {}, true}, from{"x", Kind::act, tokens, in, x};
  const Op direct = [](Ops& ops, const auto& t) { ops.linear_forward(t[0], {}, t[1], {t[2], {}}); };
  const Op through_bf16 = [&](Ops& ops, const auto& t) {
    const Tensor narrow(ops.allocate(out * in * 2), DType::bf16, {out, in}, ops.device());
    ops.copy(narrow, t[2]);
    ops.linear_forward(t[0], {}, t[1], {narrow, {}});
    ops.synchronize();
    ops.release(narrow.data);
  };
  const std::vector<Argument> arguments{y, from, {"W", Kind::act, out, in, w}};
  CHECK(evaluate(*backends().f32, arguments, direct) == evaluate(*backends().f32, arguments, through_bf16));
}

TEST_CASE("the product for shapes that cuBLASLt has no kernel for") {
  constexpr int64_t m = 37, n = 21, k = 53;
  for (const bool transposed : {false, true}) {
    CAPTURE(transposed);
    const int64_t a_rows = transposed ? k : m, a_columns = transposed ? m : k;
    check_op(
        {{"d", Kind::act, m, n, normal_values(m * n, "d"), true, 3},
         {"a", Kind::act, a_rows, a_columns, normal_values(m * k, "a"), false, 1},
         {"b", Kind::act, k, n, normal_values(k * n, "b"), false, 5}},
        [&](Ops& ops, const std::vector<Tensor>& t) {
          if (ops.device() == Device::cpu) {  // d = 2 a b + d
            for (int64_t i = 0; i < m; ++i)
              for (int64_t j = 0; j < n; ++j) {
                double sum = 0;
                for (int64_t l = 0; l < k; ++l)
                  sum += t[1].as<double>()[transposed ? l * t[1].row_stride + i : i * t[1].row_stride + l] *
                         t[2].as<double>()[l * t[2].row_stride + j];
                t[0].as<double>()[i * t[0].row_stride + j] += 2 * sum;
              }
            return;
          }
          const int64_t one = 1, stride = t[1].row_stride;
          cuda::launch_tiled_product(
              {t[1].data, t[2].data, t[0].data, m, n, k, transposed ? one : stride, transposed ? stride : one,
               t[2].row_stride, 1, t[0].row_stride, 2.0f, true},
              t[0].dtype, t[0].dtype, dynamic_cast<CudaOps&>(ops).stream());
        },
        kManyRepeats,
        [&](const std::vector<Argument>& a, DType activation) {
          Values d = product(m, n, k, {a[1].values, a_columns, 0, transposed}, {a[2].values, n});
          for (size_t i = 0; i < d.size(); ++i) d[i] = rounded(2 * d[i] + a[0].values[i], activation);
          return std::vector<Values>{d};
        });
  }
}

TEST_CASE("LM head: loss and gradients, rows that are not scored, several chunks") {
  struct Shape {
    int64_t tokens, vocabulary, width;
  };
  for (const Shape& s :
       {Shape{1, 61, 48}, {2, 512, 64}, {31, 1000, 49}, {33, 61, 48}, {127, 2003, 64}, {130, 530'000, 8}}) {
    CAPTURE(s.tokens);
    CAPTURE(s.vocabulary);
    Values targets(static_cast<size_t>(s.tokens));
    const RandomStream random(2, "targets");
    for (size_t t = 0; t < targets.size(); ++t)
      targets[t] =
          t % 4 == 2 ? -100.0 : static_cast<double>(random.below(t, static_cast<uint64_t>(s.vocabulary)));
    constexpr double kScale = 0.125;
    const bool large = s.vocabulary > 100'000;  // more rows than a grid's second dimension
    if (large && quick()) continue;
    const std::vector<Argument> arguments{
        {"nll", Kind::stat, s.tokens, 1, {}, true, 0, true},
        {"d_hidden", Kind::act, s.tokens, s.width, {}, true},
        {"d_weight", Kind::stat, s.vocabulary, s.width, normal_values(s.vocabulary * s.width, "d W", 0.01),
         true},
        {"hidden", Kind::act, s.tokens, s.width, normal_values(s.tokens * s.width, "hidden")},
        {"W", Kind::act, s.vocabulary, s.width, normal_values(s.vocabulary * s.width, "W", 0.3)},
        {"targets", Kind::i32, s.tokens, 1, targets, false, 0, true}};
    const Plain plain = [&](const std::vector<Argument>& a, DType activation) {
      Values logits =
          product(s.tokens, s.vocabulary, s.width, {a[3].values, s.width}, {a[4].values, s.width, 0, true});
      Values nll(static_cast<size_t>(s.tokens));
      for (int64_t t = 0; t < s.tokens; ++t) {
        double* const row = logits.data() + t * s.vocabulary;
        const auto target = static_cast<int64_t>(targets[static_cast<size_t>(t)]);
        const float most = static_cast<float>(*std::max_element(row, row + s.vocabulary));
        float sum = 0;
        for (int64_t c = 0; c < s.vocabulary; ++c) sum += std::exp(static_cast<float>(row[c]) - most);
        if (target >= 0)
          nll[static_cast<size_t>(t)] =
              static_cast<double>(most - static_cast<float>(row[target]) + std::log(sum));
        for (int64_t c = 0; c < s.vocabulary; ++c)
          row[c] = target < 0
                       ? 0
                       : rounded(static_cast<double>(std::exp(static_cast<float>(row[c]) - most) / sum -
                                                     (c == target ? 1.0f : 0.0f)),
                                 activation);
      }
      Values d_hidden =
          product(s.tokens, s.width, s.vocabulary, {logits, s.vocabulary}, {a[4].values, s.width});
      for (double& x : d_hidden) x *= kScale;
      Values d_weight = a[2].values;
      const Values own =
          product(s.vocabulary, s.width, s.tokens, {logits, s.vocabulary, 0, true}, {a[3].values, s.width});
      for (size_t i = 0; i < d_weight.size(); ++i) d_weight[i] += kScale * own[i];
      return std::vector<Values>{rounded(nll, DType::f32), rounded(d_hidden, activation),
                                 rounded(d_weight, DType::f32)};
    };
    check_op(
        arguments,
        [&](Ops& ops, const auto& t) { ops.head_cross_entropy(t[0], t[1], t[2], t[3], t[4], t[5], kScale); },
        large ? 2 : kManyRepeats, plain);
    if (!large)
      check_op(
          {arguments[0], arguments[3], arguments[4], arguments[5]},
          [&](Ops& ops, const auto& t) { ops.head_cross_entropy(t[0], {}, {}, t[1], t[2], t[3], 0.0); }, 2,
          [&](const std::vector<Argument>& a, DType activation) {
            std::vector<Argument> all = arguments;
            all[3] = a[1], all[4] = a[2];
            return std::vector<Values>{plain(all, activation)[0]};
          });
  }
}
