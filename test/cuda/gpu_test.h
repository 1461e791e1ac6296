// One op on several backends: the same arguments go to the CPU in f64 (the oracle), to a plain evaluation and
// to the GPU, each laid out with guards around every row.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/cuda_backend.h"
#include "kernels/ops.h"

namespace sinklora::test {

using Values = std::vector<double>;

inline double rounded(double x, DType type) {
  if (type == DType::f32) return static_cast<double>(static_cast<float>(x));
  if (type == DType::bf16) return static_cast<double>(static_cast<float>(BFloat16(static_cast<float>(x))));
  return x;
}
inline Values rounded(Values values, DType type) {
  for (double& x : values) x = rounded(x, type);
  return values;
}

inline Values normal_values(int64_t count, std::string_view name, double scale = 1.0, double offset = 0.0) {
  constexpr size_t kPeriod = 65521;  // fits no shape
  const RandomStream random(7, name);
  Values values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = i < kPeriod ? offset + scale * random.normal(i) : values[i - kPeriod];
  return values;
}

enum class Kind { act, stat, i32, i64 };

struct Argument {
  std::string name;
  Kind kind = Kind::act;
  int64_t rows = 0, columns = 0;
  Values values;  // empty: filled with NaN, to be overwritten
  bool output = false;
  int64_t padding = 0;  // elements between rows: a column slice
  bool vector = false;  // rank 1
  int64_t terms = 1;    // of the sum that an element of an output is
};

// Memory of a backend with guards: `guard` bytes in front and behind, and the padding of every row.
class Guarded {
 public:
  Guarded(Ops& ops, const Argument& from)
      : ops_(ops), rows_(from.rows), columns_(from.columns), stride_(from.columns + from.padding) {
    dtype_ = from.kind == Kind::act    ? ops.activation_dtype()
             : from.kind == Kind::stat ? ops.statistic_dtype()
             : from.kind == Kind::i32  ? DType::i32
                                       : DType::i64;
    image_.assign(static_cast<size_t>(2 * kGuard + (rows_ * stride_ * size_of(dtype_) + 3) / 4 * 4),
                  kPattern);
    memory_ = ops.allocate(static_cast<int64_t>(image_.size()));
    for (int64_t i = 0; i < rows_ * columns_; ++i)
      write(i, from.values.empty() ? std::nan("") : from.values[static_cast<size_t>(i)]);
    ops.upload(whole(), image_.data());
    vector_ = from.vector;
  }
  ~Guarded() { ops_.release(memory_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  Tensor view() const {
    void* const data = static_cast<char*>(memory_) + kGuard;
    Tensor view = vector_ ? Tensor(data, dtype_, {rows_ * columns_}, ops_.device())
                          : Tensor(data, dtype_, {rows_, columns_}, ops_.device());
    if (!vector_) view.row_stride = stride_;
    return view;
  }
  // The elements; fails the test when a guard was overwritten.
  Values get(const std::string& name) {
    std::vector<unsigned char> now(image_.size());
    ops_.download(now.data(), whole());
    std::vector<bool> ours(now.size());
    Values values(static_cast<size_t>(rows_ * columns_));
    for (int64_t i = 0; i < rows_ * columns_; ++i) {
      values[static_cast<size_t>(i)] = read(now.data() + offset(i));
      for (int64_t b = 0; b < size_of(dtype_); ++b) ours[static_cast<size_t>(offset(i) + b)] = true;
    }
    bool intact = true;
    for (size_t b = 0; b < now.size(); ++b) intact = intact && (ours[b] || now[b] == kPattern);
    CAPTURE(name);
    CHECK_MESSAGE(intact, "the memory around this argument was written");
    return values;
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr unsigned char kPattern = 0xA5;

  Tensor whole() const {
    return {memory_, DType::i32, {static_cast<int64_t>(image_.size()) / 4}, ops_.device()};
  }
  int64_t offset(int64_t i) const {
    return kGuard + (i / columns_ * stride_ + i % columns_) * size_of(dtype_);
  }
  void write(int64_t i, double x) {
    unsigned char* const to = image_.data() + offset(i);
    const auto put = [&](auto value) { std::memcpy(to, &value, sizeof value); };
    switch (dtype_) {
      case DType::f64:
        return put(x);
      case DType::f32:
        return put(static_cast<float>(x));
      case DType::bf16:
        return put(BFloat16(static_cast<float>(x)));
      case DType::i32:
        return put(static_cast<int32_t>(x));
      default:
        return put(static_cast<int64_t>(x));
    }
  }
  double read(const unsigned char* from) const {
    const auto take = [&]<class T>(T value) {
      std::memcpy(&value, from, sizeof value);
      if constexpr (std::is_same_v<T, BFloat16>)
        return static_cast<double>(static_cast<float>(value));
      else
        return static_cast<double>(value);
    };
    switch (dtype_) {
      case DType::f64:
        return take(double{});
      case DType::f32:
        return take(float{});
      case DType::bf16:
        return take(BFloat16{});
      case DType::i32:
        return take(int32_t{});
      default:
        return take(int64_t{});
    }
  }

  Ops& ops_;
  int64_t rows_, columns_, stride_;
  DType dtype_{};
  bool vector_ = false;
  std::vector<unsigned char> image_;
  void* memory_ = nullptr;
};

using Op = std::function<void(Ops&, const std::vector<Tensor>&)>;

// The values of the outputs after the op, in the order of the arguments.
inline std::vector<Values> evaluate(Ops& ops, const std::vector<Argument>& arguments, const Op& op) {
  std::vector<std::unique_ptr<Guarded>> memory;
  std::vector<Tensor> tensors;
  for (const Argument& argument : arguments) {
    memory.push_back(std::make_unique<Guarded>(ops, argument));
    tensors.push_back(memory.back()->view());
  }
  op(ops, tensors);
  std::vector<Values> outputs;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].output) outputs.push_back(memory[i]->get(arguments[i].name));
  return outputs;
}

struct Errors {
  double rms = 0, most = 0;
};
// NaN anywhere makes both NaN, and every comparison with them fails.
inline Errors error_between(const Values& a, const Values& b) {
  REQUIRE(a.size() == b.size());
  Errors error;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(a[i] - b[i]);
    error.rms += d * d;
    if (!(d <= error.most)) error.most = d;
    if (std::isnan(d)) return {d, d};
  }
  error.rms = std::sqrt(error.rms / static_cast<double>(std::max<size_t>(1, a.size())));
  return error;
}

constexpr double kAllowed = 3.0;           // times the error of a plain evaluation
constexpr double kUnit = 1.0 / (1 << 24);  // one rounding to f32

// A plain evaluation of a few numbers can be exact by luck: it is taken to err by one rounding at least, and
// by the roundings of a sum of random signs, sqrt(terms) of them, where an element is a long sum.
inline void check_errors(const std::vector<Argument>& arguments, const std::vector<Values>& got,
                         const std::vector<Values>& oracle, const std::vector<Values>& plain) {
  size_t n = 0;
  for (const Argument& argument : arguments) {
    if (!argument.output) continue;
    CAPTURE(argument.name);
    const Errors ours = error_between(got[n], oracle[n]), theirs = error_between(plain[n], oracle[n]);
    const Errors size = error_between(oracle[n], Values(oracle[n].size()));
    const double roundings = kUnit * std::sqrt(static_cast<double>(argument.terms));
    CHECK(std::isfinite(theirs.rms));
    CHECK(ours.rms <= kAllowed * std::max(theirs.rms, roundings * size.rms));
    CHECK(ours.most <= kAllowed * std::max(theirs.most, roundings * size.most));
    ++n;
  }
}

struct Backends {
  std::unique_ptr<Ops> oracle = make_cpu_ops(DType::f64), single = make_cpu_ops(DType::f32);
  std::unique_ptr<Ops> f32 = make_cuda_ops(DType::f32), bf16 = make_cuda_ops(DType::bf16);
};
inline Backends& backends() {
  static Backends all;
  return all;
}

// A plain evaluation: the op in f32 on the CPU, its outputs rounded to the type in which they are kept.
inline std::vector<Values> plain_evaluation(const std::vector<Argument>& arguments, const Op& op,
                                            DType activation) {
  std::vector<Values> outputs = evaluate(*backends().single, arguments, op);
  size_t n = 0;
  for (const Argument& argument : arguments)
    if (argument.output) {
      outputs[n] = rounded(outputs[n], argument.kind == Kind::act ? activation : DType::f32);
      ++n;
    }
  return outputs;
}

using Plain = std::function<std::vector<Values>(const std::vector<Argument>&, DType)>;

// Set by scripts/sanitize_gpu.sh, under which everything takes many times as long: once is enough, and the
// largest shapes are left out.
inline bool quick() {
  static const bool set = std::getenv("SINKLORA_QUICK_TESTS") != nullptr;
  return set;
}

// Runs the op on the GPU in f32 and bf16 against the oracle; `repeats` runs must give the same bits.
inline void check_op(std::vector<Argument> arguments, const Op& op, int repeats = 3,
                     const Plain& plain = {}) {
  for (const DType activation : {DType::f32, DType::bf16}) {
    CAPTURE(name_of(activation));
    Ops& gpu = activation == DType::f32 ? *backends().f32 : *backends().bf16;
    for (Argument& argument : arguments)
      if (argument.kind == Kind::act || argument.kind == Kind::stat)
        argument.values = rounded(argument.values, argument.kind == Kind::act ? activation : DType::f32);
    const std::vector<Values> oracle = evaluate(*backends().oracle, arguments, op);
    const std::vector<Values> got = evaluate(gpu, arguments, op);
    check_errors(arguments, got, oracle,
                 plain ? plain(arguments, activation) : plain_evaluation(arguments, op, activation));
    for (int i = 1; i < (quick() ? 1 : repeats); ++i) {
      const std::vector<Values> again = evaluate(gpu, arguments, op);
      for (size_t n = 0; n < got.size(); ++n)
        CHECK(std::memcmp(again[n].data(), got[n].data(), got[n].size() * sizeof(double)) == 0);
    }
  }
}

constexpr int64_t kRaggedRows[] = {1, 2, 31, 33, 127, 4095, 4097};
constexpr int kManyRepeats = 100;

}  // namespace sinklora::test
