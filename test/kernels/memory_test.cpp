// CPU memory, conversions, arenas, the optimizer, and the library behind the products.
#include "kernels/arena.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/blas_info.h"
#include "test/kernels/kernel_test.h"

using namespace sinklora;
using namespace sinklora::test;

TEST_CASE("cpu memory: zeroed, aligned, refused when the machine has not as much") {
  const auto ops = make_cpu_ops(DType::f32);
  auto* const memory = static_cast<unsigned char*>(ops->allocate(1000));
  CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0);
  CHECK(std::all_of(memory, memory + 1000, [](unsigned char byte) { return byte == 0; }));
  ops->release(memory);
  try {
    ops->allocate(int64_t{1} << 60);
    FAIL("an exabyte was allocated");
  } catch (const Error& error) {
    CHECK(error.code == ExitCode::does_not_fit);
  }
  CHECK_THROWS_AS(make_cpu_ops(DType::bf16), Error);
  CHECK(make_cpu_ops(DType::f64)->statistic_dtype() == DType::f64);
}

TEST_CASE("cpu memory: an arena's views do not overlap and are on the CPU") {
  const auto ops = make_cpu_ops(DType::f32);
  Arena arena("test");
  Tensor a, b;
  arena.take(&a, DType::bf16, {3, 5});
  arena.take(&b, DType::f32, {7});
  CHECK(arena.bytes() == 128 + 256);  // 64 elements each
  arena.allocate(*ops);
  CHECK(static_cast<char*>(b.data) - static_cast<char*>(a.data) == 128);
  CHECK_THROWS_AS(static_cast<void>(arena.whole()), Error);
  const std::vector<float> host{1, 2, 3, 4, 5, 6, 7};
  ops->upload(b, host.data());
  std::vector<float> back(7);
  ops->download(back.data(), b);
  CHECK(back == host);
}

TEST_CASE(
    "cpu memory: arenas of different types whose requests are alike have their tensors at the same "
    "elements") {
  const auto ops = make_cpu_ops(DType::f32);
  Arena wide("wide"), narrow("narrow");
  Tensor a[3], b[3];
  const int64_t sizes[] = {5, 130, 64};
  for (int i = 0; i < 3; ++i)
    wide.take(&a[i], DType::f32, {sizes[i]}), narrow.take(&b[i], DType::bf16, {sizes[i]});
  CHECK(!wide.whole());
  wide.allocate(*ops), narrow.allocate(*ops);
  CHECK(wide.whole().size() == 64 + 192 + 64);
  CHECK(narrow.whole().size() == wide.whole().size());
  for (int i = 0; i < 3; ++i)
    CHECK((a[i].as<char>() - a[0].as<char>()) / 4 == (b[i].as<char>() - b[0].as<char>()) / 2);
}

TEST_CASE("cpu copy: every pair of float types rounds once, columns stay apart, other types are only moved") {
  const auto ops = make_cpu_ops(DType::f32);
  const Array<double> wide = random_array<double>(33, 40, "wide");
  Array<float> floats(33, 50, -7.0f);
  ops->copy(floats.view().column_slice(4, 40), wide.view());
  Array<BFloat16> narrow(33, 40);
  ops->copy(narrow.view(), floats.view().column_slice(4, 40));
  Array<double> back(33, 40);
  ops->copy(back.view(), narrow.view());
  std::vector<uint16_t> halves(33 * 40);
  const Tensor half_view(halves.data(), DType::f16, {33, 40});
  ops->copy(half_view, wide.view());
  Array<float> from_half(33, 40);
  ops->copy(from_half.view(), half_view);
  for (int64_t r = 0; r < 33; ++r) {
    CHECK(floats(r, 3) == -7.0f);
    CHECK(floats(r, 44) == -7.0f);
    for (int64_t c = 0; c < 40; ++c) {
      const auto value = static_cast<float>(wide(r, c));
      REQUIRE(floats(r, 4 + c) == value);
      REQUIRE(narrow(r, c).bits == BFloat16(value).bits);
      REQUIRE(back(r, c) == static_cast<double>(static_cast<float>(narrow(r, c))));
      REQUIRE(from_half(r, c) == half_to_float(float_to_half(value)));
    }
  }
  Array<int32_t> ids(4, 1, 9), moved(4, 1);
  ops->copy(moved.flat(), ids.flat());
  CHECK(moved.values == ids.values);
  CHECK_THROWS_AS(ops->copy(moved.view(), floats.view().row_slice(0, 4).column_slice(0, 1)), Error);
  CHECK_THROWS_AS(ops->copy(moved.view(), ids.view().row_slice(0, 3)), Error);
  ops->zero(floats.view().column_slice(4, 40));
  CHECK(floats(5, 3) == -7.0f);
  CHECK(floats(5, 4) == 0.0f);
  CHECK(floats(5, 43) == 0.0f);
  CHECK(floats(5, 44) == -7.0f);
}

namespace {

template <class T>
struct Optimizer {
  std::unique_ptr<Ops> ops = make_cpu_ops(dtype_of<T>());
  Array<T> master, gradient, m, v;
  explicit Optimizer(int64_t count)
      : master(random_array<T>(count, 1, "master")),
        gradient(random_array<T>(count, 1, "gradient")),
        m(count, 1),
        v(count, 1) {}
};

}  // namespace

TEST_CASE(
    "cpu adamw: ten steps in double are the formula, in float near it; the working copy is rounded once") {
  for (const int64_t count : {1, 2, 33, 10000}) {
    Optimizer<double> exact(count);
    Optimizer<float> work(count);
    Array<double> w = exact.master, m(count, 1), v(count, 1);
    Array<BFloat16> working(count, 1);
    for (int64_t step = 1; step <= 10; ++step) {
      const AdamWStep s{1e-3, 0.9, 0.95, 1e-8, 0.1, step, 0.5};
      exact.ops->adamw(exact.master.view(), exact.master.view(), exact.gradient.view(), exact.m.view(),
                       exact.v.view(), s);
      work.ops->adamw(working.view(), work.master.view(), work.gradient.view(), work.m.view(), work.v.view(),
                      s);
      for (size_t i = 0; i < w.values.size(); ++i) {
        const double g = 0.5 * exact.gradient.values[i];
        m.values[i] = 0.9 * m.values[i] + 0.1 * g;
        v.values[i] = 0.95 * v.values[i] + 0.05 * g * g;
        const double mhat = m.values[i] / (1 - std::pow(0.9, step)),
                     vhat = v.values[i] / (1 - std::pow(0.95, step));
        w.values[i] = w.values[i] - 1e-3 * 0.1 * w.values[i] - 1e-3 * mhat / (std::sqrt(vhat) + 1e-8);
      }
      for (double& g : exact.gradient.values) g = static_cast<double>(static_cast<float>(-0.7 * g));
      for (float& g : work.gradient.values) g = static_cast<float>(-0.7 * static_cast<double>(g));
    }
    CHECK(relative_error(exact.master, w) <= rounding(10, 4, kDoubleEpsilon));
    CHECK(relative_error(exact.m, m) <= rounding(10, 8, kDoubleEpsilon));
    CHECK(relative_error(exact.v, v) <= rounding(10, 8, kDoubleEpsilon));
    CHECK(relative_error(work.master, w) <= rounding(10, 4));
    CHECK(same_bits(working, as<BFloat16>(work.master)));
  }
}

TEST_CASE("cpu sum of squares: exact order, every type, NaN and infinity show") {
  const auto ops = make_cpu_ops(DType::f32);
  for (const int64_t count : {1, 2, 4095, 4097, 100000}) {
    const Array<float> x = random_array<float>(count, 1, "x");
    double want = 0;
    for (const float value : x.values) want += static_cast<double>(value) * static_cast<double>(value);
    CHECK(std::fabs(ops->sum_of_squares(x.view()) - want) <= rounding(count, 2, kDoubleEpsilon) * want);
    CHECK(ops->sum_of_squares(as<double>(x).view()) == ops->sum_of_squares(x.view()));
    double sums[2];
    on_one_and_two_threads([&](int i) { sums[i] = ops->sum_of_squares(x.view()); });
    CHECK(sums[0] == sums[1]);
  }
  Array<float> x(5000, 1, 1e30f);
  CHECK(std::fabs(ops->sum_of_squares(x.view()) / 5e63 - 1) < 1e-6);  // squares that a float does not hold
  x(4321, 0) = std::numeric_limits<float>::infinity();
  CHECK(std::isinf(ops->sum_of_squares(x.view())));
  x(17, 0) = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(ops->sum_of_squares(x.view())));
  CHECK(ops->sum_of_squares(Array<float>(0, 1).view()) == 0);
}

TEST_CASE("cpu products: every layout at sizes around the tiles' borders") {
  for (const auto& [m, n, k] :
       {std::tuple{1, 1, 1}, {1, 700, 300}, {129, 65, 40}, {300, 600, 7}, {513, 17, 33}}) {
    for (const Layout layout_a : {Layout::plain, Layout::transposed})
      for (const Layout layout_b : {Layout::plain, Layout::transposed}) {
        const bool ta = layout_a == Layout::transposed, tb = layout_b == Layout::transposed;
        Array<double> a = random_array<double>(ta ? k : m, ta ? m : k, "a");
        Array<double> b = random_array<double>(tb ? n : k, tb ? k : n, "b");
        Array<double> c = random_array<double>(m, n, "c"), want = c;
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t p = 0; p < k; ++p) sum += (ta ? a(p, i) : a(i, p)) * (tb ? b(j, p) : b(p, j));
            want(i, j) = 0.5 * want(i, j) + 2 * sum;
          }
        gemm<double>(layout_a, layout_b, m, n, k, 2, {a.values.data(), a.columns},
                     {b.values.data(), b.columns}, 0.5, {c.values.data(), n});
        CHECK(relative_error(c, want) <= rounding(k + 1, 4, kDoubleEpsilon));
      }
  }
  Array<float> tiny(1, 1);
  const Matrix<float> wide{tiny.values.data(), int64_t{1} << 40};
  CHECK_THROWS_AS(gemm<float>(Layout::plain, Layout::plain, 1, 1, 1, 1, wide, wide, 0, wide), Error);
}

TEST_CASE("a processor that OpenBLAS does not know gets the kernels of its vector unit") {
  const std::vector<std::string> avx512{"fma", "avx2", "avx512f", "avx512bw"}, avx2{"avx2", "fma"};
  CHECK(better_blas_core("Prescott", avx512) == "SkylakeX");
  CHECK(better_blas_core("Prescott", avx2) == "Haswell");
  CHECK(better_blas_core("Prescott", {"sse4_2"}).empty());
  for (const char* known : {"SkylakeX", "Zen", "Haswell", "Cooperlake", "ARMV8"})
    CHECK(better_blas_core(known, avx512).empty());
}
