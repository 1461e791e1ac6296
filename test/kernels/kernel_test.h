// What the kernel tests share: numbers with views, random ones, error measures, central differences.
#pragma once

#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/random.h"
#include "kernels/ops.h"

namespace sinklora::test {

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, BFloat16>) return DType::bf16;
  if constexpr (std::is_same_v<T, int32_t>) return DType::i32;
  return DType::i64;
}

// A matrix that owns its numbers.
template <class T>
struct Array {
  int64_t rows = 0, columns = 0;
  std::vector<T> values;

  Array() = default;
  Array(int64_t rows, int64_t columns, T value = T{})
      : rows(rows), columns(columns), values(static_cast<size_t>(rows * columns), value) {}
  T& operator()(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  const T& operator()(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * columns + c)]; }
  Tensor view() const { return {const_cast<T*>(values.data()), dtype_of<T>(), {rows, columns}}; }
  // For parameters of one dimension.
  Tensor flat() const { return {const_cast<T*>(values.data()), dtype_of<T>(), {rows * columns}}; }
};

// Normal numbers, exact in float. Large arrays repeat them, with a period that fits no shape.
template <class T>
Array<T> random_array(int64_t rows, int64_t columns, std::string_view name, double scale = 1.0) {
  constexpr size_t kPeriod = 65521;
  const RandomStream random(1, name);
  Array<T> array(rows, columns);
  for (size_t i = 0; i < array.values.size(); ++i)
    array.values[i] = i < kPeriod ? static_cast<T>(static_cast<float>(scale * random.normal(i)))
                                  : array.values[i - kPeriod];
  return array;
}

template <class To, class From>
Array<To> as(const Array<From>& from) {
  Array<To> to(from.rows, from.columns);
  for (size_t i = 0; i < to.values.size(); ++i) {
    if constexpr (std::is_same_v<To, BFloat16>)
      to.values[i] = BFloat16(static_cast<float>(from.values[i]));
    else
      to.values[i] = static_cast<To>(from.values[i]);
  }
  return to;
}

inline Array<float> widen(const Array<BFloat16>& from) {
  Array<float> to(from.rows, from.columns);
  for (size_t i = 0; i < to.values.size(); ++i) to.values[i] = static_cast<float>(from.values[i]);
  return to;
}

// |a - b| / |b| in the Euclidean norm; NaN where either holds a NaN, and every comparison with it fails.
template <class A, class B>
double relative_error(const Array<A>& a, const Array<B>& b) {
  REQUIRE(a.values.size() == b.values.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    const auto x = static_cast<double>(a.values[i]), y = static_cast<double>(b.values[i]);
    difference += (x - y) * (x - y);
    size += y * y;
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

template <class T>
bool same_bits(const Array<T>& a, const Array<T>& b) {
  return a.values.size() == b.values.size() &&
         std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(T)) == 0;
}

// Rounding errors of a sum of n products of random signs grow like sqrt(n) eps relative to its size; each of
// the few further steps of a formula (`steps`) adds as much at most.
inline double rounding(int64_t n, double steps = 1, double epsilon = std::numeric_limits<float>::epsilon()) {
  return steps * epsilon * std::sqrt(static_cast<double>(n));
}
constexpr double kDoubleEpsilon = std::numeric_limits<double>::epsilon();

// A loss that weighs every output with its own random number.
inline double project(const Array<double>& output, const Array<double>& weights) {
  double sum = 0;
  for (size_t i = 0; i < output.values.size(); ++i) sum += output.values[i] * weights.values[i];
  return sum;
}

// Central differences of `loss` over (at most about `most` of) the elements of `input`, against `gradient`;
// the largest difference relative to the largest gradient. With h = 1e-4 the fourth-order formula errs by h^4
// and 1e-16 / h.
inline double gradient_error(Array<double>& input, const Array<double>& gradient,
                             const std::function<double()>& loss, size_t most = 60) {
  REQUIRE(input.values.size() == gradient.values.size());
  const size_t step = std::max<size_t>(1, input.values.size() / most);
  constexpr double h = 1e-4;
  double worst = 0, largest = 0;
  for (const double g : gradient.values) largest = std::max(largest, std::fabs(g));
  for (size_t i = 0; i < input.values.size(); i += step) {
    double& x = input.values[i];
    const double kept = x;
    const auto at = [&](double offset) {
      x = kept + offset;
      return loss();
    };
    const double slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    x = kept;
    const double error = std::fabs(slope - gradient.values[i]);
    if (!(error <= worst)) worst = error;  // NaN comes through
    if (std::isnan(error)) return error;
  }
  return largest > 0 ? worst / largest : worst;
}
constexpr double kGradientTolerance = 1e-6;

// Runs `work` on 1 and on 2 threads.
template <class Work>
void on_one_and_two_threads(Work&& work) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  work(0);
  omp_set_num_threads(2);
  work(1);
  omp_set_num_threads(before);
}

}  // namespace sinklora::test
