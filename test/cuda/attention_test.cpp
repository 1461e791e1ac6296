// GPU attention against an evaluation in double, pair by pair. The measure of an error is the error of a
// plain evaluation in the kernel's own precision: bf16 inputs, P, dS and outputs, or all f32.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <random>

#include "attention_data.h"

namespace sinklora::test {
namespace {

struct Case {
  std::string pattern;
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, dim;
  int64_t group = 0, sinks = 0;
  DType dtype = DType::bf16;

  std::string name() const {
    std::string text = fmt::format("{} {} heads {}/{} dim {} group {} sinks {} lengths", name_of(dtype),
                                   pattern, heads, kv_heads, dim, group, sinks);
    for (const int64_t length : lengths) text += fmt::format(" {}", length);
    return text;
  }
};

std::vector<double> to_double(const std::vector<char>& bytes, DType dtype) {
  std::vector<double> values(bytes.size() / static_cast<size_t>(size_of(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::bf16) {
      BFloat16 value;
      std::memcpy(&value, bytes.data() + i * 2, 2);
      values[i] = static_cast<float>(value);
    } else {
      float value;
      std::memcpy(&value, bytes.data() + i * 4, 4);
      values[i] = value;
    }
  }
  return values;
}

// Normal random numbers, exact in `dtype`.
std::vector<double> random_values(int64_t count, DType dtype, uint64_t seed, GuardedMemory& device) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<char> bytes(static_cast<size_t>(count * size_of(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(engine);
    const BFloat16 rounded(value);
    if (dtype == DType::bf16)
      std::memcpy(bytes.data() + i * 2, &rounded, 2);
    else
      std::memcpy(bytes.data() + i * 4, &value, 4);
  }
  device.upload(bytes.data());
  return to_double(bytes, dtype);
}

// Evaluates in Real; rounds P, dS and results as a plain kernel of `dtype` would when `plain`.
template <class Real>
struct Dense {
  const AttentionBuffers& b;
  bool round_to_bf16;
  std::vector<Real> out, d_qkv, lse;  // laid out as on the device

  Real rounded(Real value) const {
    return round_to_bf16 ? static_cast<Real>(static_cast<float>(BFloat16(static_cast<float>(value)))) : value;
  }

  Dense(const AttentionBuffers& buffers, bool to_bf16, const std::vector<double>& qkv,
        const std::vector<double>& d_out_values)
      : b(buffers),
        round_to_bf16(to_bf16),
        out(d_out_values.size()),
        d_qkv(qkv.size()),
        lse(static_cast<size_t>(b.shape.num_heads * b.shape.tokens)) {
    const std::vector<Real> x(qkv.begin(), qkv.end()), g(d_out_values.begin(), d_out_values.end());
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t s = 0; s < b.shape.sequences; ++s)
      for (int64_t kv = 0; kv < b.shape.num_kv_heads; ++kv) kv_head(x.data(), g.data(), s, kv);
  }

  void kv_head(const Real* x, const Real* g, int64_t s, int64_t kv) {
    const int64_t d = b.shape.head_dim, group = b.shape.num_heads / b.shape.num_kv_heads, row = b.fused_row;
    const int64_t start = b.offsets_host[static_cast<size_t>(s)];
    const int64_t length = b.offsets_host[static_cast<size_t>(s) + 1] - start;
    const Real scale = static_cast<Real>(1.0 / std::sqrt(static_cast<double>(d)));
    const int64_t k_at = b.q_columns() + kv * d, v_at = k_at + b.kv_columns();
    std::vector<Real> d_k(static_cast<size_t>(length * d)), d_v(d_k.size()), p, o(static_cast<size_t>(d)),
        d_q(o.size());
    std::vector<int64_t> seen;
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
      for (int64_t i = 0; i < length; ++i) {
        const Real* q = x + (start + i) * row + head * d;
        const Real* d_o = g + (start + i) * b.row + head * d;
        seen.clear();
        const RangePair keys = key_ranges(b.pattern, head, i, length);
        for (int64_t j = keys.first.begin; j < keys.first.end; ++j) seen.push_back(j);
        for (int64_t j = keys.second.begin; j < keys.second.end; ++j) seen.push_back(j);
        p.assign(seen.size(), 0);
        Real most = -INFINITY, sum = 0;
        for (size_t n = 0; n < seen.size(); ++n) {
          p[n] = dot(q, x + (start + seen[n]) * row + k_at, d) * scale;
          most = std::max(most, p[n]);
        }
        for (Real& value : p) sum += value = std::exp(value - most);
        lse[static_cast<size_t>(head * b.shape.tokens + start + i)] = most + std::log(sum);
        std::fill(o.begin(), o.end(), Real{});
        for (size_t n = 0; n < seen.size(); ++n) {
          p[n] /= sum;
          add(o.data(), rounded(p[n]), x + (start + seen[n]) * row + v_at, d);
        }
        Real delta = 0;
        for (int64_t c = 0; c < d; ++c) {
          const Real value = rounded(o[static_cast<size_t>(c)]);
          out[static_cast<size_t>((start + i) * b.row + head * d + c)] = value;
          delta += value * d_o[c];
        }
        std::fill(d_q.begin(), d_q.end(), Real{});
        for (size_t n = 0; n < seen.size(); ++n) {
          const int64_t j = seen[n];
          const Real d_s = rounded(p[n] * (dot(d_o, x + (start + j) * row + v_at, d) - delta));
          add(d_v.data() + j * d, rounded(p[n]), d_o, d);
          add(d_k.data() + j * d, d_s, q, d);
          add(d_q.data(), d_s, x + (start + j) * row + k_at, d);
        }
        for (int64_t c = 0; c < d; ++c)
          d_qkv[static_cast<size_t>((start + i) * row + head * d + c)] =
              rounded(d_q[static_cast<size_t>(c)] * scale);
      }
    for (int64_t j = 0; j < length; ++j)
      for (int64_t c = 0; c < d; ++c) {
        d_qkv[static_cast<size_t>((start + j) * row + k_at + c)] =
            rounded(d_k[static_cast<size_t>(j * d + c)] * scale);
        d_qkv[static_cast<size_t>((start + j) * row + v_at + c)] =
            rounded(d_v[static_cast<size_t>(j * d + c)]);
      }
  }

  static Real dot(const Real* x, const Real* y, int64_t d) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < d; ++c) sum += x[c] * y[c];
    return sum;
  }
  static void add(Real* to, Real factor, const Real* x, int64_t d) {
#pragma omp simd
    for (int64_t c = 0; c < d; ++c) to[c] += factor * x[c];
  }
};

// Columns [begin, end), in rows of `dim` elements (one token and head). All together may be off by half as
// much again as the plain evaluation, and each row by three times what its worst row is off: where gradients
// cancel, a row's own error is luck. To both f32 adds the rounding of sums of `dim` products, times a row:
// inputs are standard normal.
template <class Real>
void compare(const char* what, const std::vector<double>& got, const std::vector<double>& exact,
             const std::vector<Real>& plain, int64_t row, int64_t begin, int64_t end, int64_t dim) {
  constexpr double unit = 1.0 / (1 << 20);
  const int64_t rows = static_cast<int64_t>(got.size()) / row, count = rows * (end - begin) / dim;
  std::vector<double> off;
  double off_total = 0, plain_total = 0, plain_worst = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c0 = begin; c0 < end; c0 += dim) {
      double of_row = 0, of_plain = 0;
      for (int64_t c = c0; c < c0 + dim; ++c) {
        const auto i = static_cast<size_t>(r * row + c);
        of_row += (got[i] - exact[i]) * (got[i] - exact[i]);
        of_plain += (static_cast<double>(plain[i]) - exact[i]) * (static_cast<double>(plain[i]) - exact[i]);
      }
      off.push_back(std::sqrt(of_row));
      plain_worst = std::max(plain_worst, std::sqrt(of_plain));
      off_total += of_row, plain_total += of_plain;
    }
  const double mean = std::sqrt(plain_total / static_cast<double>(count));
  const double floor = unit * std::sqrt(static_cast<double>(dim));
  double worst = 0;
  size_t worst_at = 0;
  for (size_t i = 0; i < off.size(); ++i) {
    const double ratio = off[i] / (3 * plain_worst + floor);
    if (!(ratio <= worst)) worst = ratio, worst_at = i;
  }
  INFO(what << ": worst at row " << static_cast<int64_t>(worst_at) * dim / (end - begin) << ", head "
            << static_cast<int64_t>(worst_at) % ((end - begin) / dim));
  CHECK(worst <= 1.0);
  const double whole = std::sqrt(off_total / static_cast<double>(count));
  if (rows >= 64) CHECK(whole <= 1.5 * mean + floor);
}

void check_results(AttentionBuffers& b, const Case& c, const Dense<double>& exact,
                   const Dense<float>& plain) {
  const auto out = to_double(b.out.download(), c.dtype), grad = to_double(b.d_qkv.download(), c.dtype);
  const auto lse = to_double(b.lse.download(), DType::f32);
  const int64_t k_at = b.q_columns(), v_at = k_at + b.kv_columns();
  compare("out", out, exact.out, plain.out, b.row, 0, k_at, c.dim);
  compare("d_q", grad, exact.d_qkv, plain.d_qkv, b.fused_row, 0, k_at, c.dim);
  compare("d_k", grad, exact.d_qkv, plain.d_qkv, b.fused_row, k_at, v_at, c.dim);
  compare("d_v", grad, exact.d_qkv, plain.d_qkv, b.fused_row, v_at, b.fused_row - 8, c.dim);
  double worst = 0;  // ex2.approx and the sum are good to 2^-22 each; scores to a few units of f32
  for (size_t i = 0; i < lse.size(); ++i) {
    const double off = std::fabs(lse[i] - exact.lse[i]);
    if (!(off <= worst)) worst = off;
  }
  CHECK(worst <= 1e-5);
  bool padding_intact = true;
  for (int64_t r = 0; r < b.shape.tokens; ++r)
    for (int64_t i = 1; i <= 8; ++i)
      padding_intact = padding_intact && std::isnan(out[static_cast<size_t>((r + 1) * b.row - i)]) &&
                       std::isnan(grad[static_cast<size_t>((r + 1) * b.fused_row - i)]);
  CHECK(padding_intact);
  for (const GuardedMemory* memory :
       {&b.qkv, &b.d_qkv, &b.out, &b.d_out, &b.lse, &b.offsets, b.workspace.get()})
    CHECK(memory->guards_intact());
}

// Every kernel of this device.
void check_case(const Case& c) {
  INFO(c.name());
  AttentionBuffers b(c.dtype, c.lengths, c.heads, c.kv_heads, c.dim,
                     pattern_of(c.pattern, c.heads, c.group, c.sinks));
  const auto qkv = random_values(b.shape.tokens * b.fused_row, c.dtype, 1, b.qkv);
  const auto d_out = random_values(b.shape.tokens * b.row, c.dtype, 2, b.d_out);
  const Dense<double> exact(b, false, qkv, d_out);
  const Dense<float> plain(b, c.dtype == DType::bf16, qkv, d_out);
  for (const AttentionKernel kernel : kernels_for(c.dtype, c.dim)) {
    INFO(name_of(kernel));
    b.use(kernel);
    b.forward();
    b.backward();
    check(cudaDeviceSynchronize());
    check_results(b, c, exact, plain);
  }
}

}  // namespace

TEST_CASE("GPU attention in bf16: every pattern, ragged lengths, packed sequences") {
  const std::vector<std::vector<int64_t>> batches = {{1}, {2}, {31}, {33, 1, 127}, {300, 64, 129}, {1027}};
  for (const std::string pattern : {"full", "fixed", "s2", "s2-wrap", "sf"})
    for (const auto& lengths : batches)
      for (const int64_t group : {6, 64, 100, 256, 5000}) {
        if (pattern == "full" && group != 6) continue;
        for (const int64_t dim : {64, 128}) {
          const int64_t sinks = pattern == "sf" ? (group == 64    ? 64
                                                   : group == 100 ? 300
                                                                  : 4)
                                : group == 256  ? 1
                                                : 0;
          check_case({pattern, lengths, 4, group == 64 ? 1 : 4, dim, group, pattern == "full" ? 0 : sinks});
        }
      }
}

TEST_CASE("GPU attention in bf16: long sequences") {
  check_case({"full", {2049}, 2, 2, 128});
  check_case({"sf", {4095}, 4, 4, 128, 1024, 4});
  check_case({"sf", {4097}, 4, 1, 128, 1000, 64});
  check_case({"s2", {4274}, 4, 2, 128, 1068});
  check_case({"s2-wrap", {4096}, 4, 4, 64, 1024});
  check_case({"s2-wrap", {2050, 700}, 4, 4, 128, 600, 20});
  check_case({"sf", {1500, 2600}, 4, 4, 64, 512, 300});
}

// Blocks find their sequence by its slot: among up to 32 in one step, among more in several; empty ones have
// a slot too.
TEST_CASE("GPU attention in bf16: rows of very many sequences") {
  std::vector<int64_t> few, many;
  for (int64_t i = 0; i < 33; ++i) few.push_back(i == 20 ? 700 : i * 37 % 130);
  for (int64_t i = 0; i < 1100; ++i) many.push_back(i % 500 == 499 ? 257 : i * 5 % 7);
  for (const auto& lengths : {few, many}) {
    check_case({"full", lengths, 4, 2, 64});
    check_case({"sf", lengths, 4, 4, 128, 100, 20});
  }
  check_case({"s2-wrap", few, 4, 1, 64, 64});
}

TEST_CASE("GPU attention in bf16: grouped query heads") {
  check_case({"sf", {700}, 32, 8, 64, 128, 4});
  check_case({"s2", {700}, 9, 3, 64, 130});
  check_case({"full", {500, 213}, 9, 3, 128});
}

TEST_CASE("GPU attention in f32") {
  for (const std::string pattern : {"full", "fixed", "s2", "s2-wrap", "sf"})
    for (const int64_t dim : {64, 128}) {
      check_case({pattern, {1, 33, 300}, 4, 2, dim, 64, pattern == "sf" ? 40 : 0, DType::f32});
      check_case({pattern, {517}, 4, 4, dim, 100, pattern == "sf" ? 4 : 0, DType::f32});
    }
}

TEST_CASE("GPU attention: the same bits on every run") {
  std::vector<int64_t> packed(40, 50);
  packed[30] = 2000;
  for (const Case& c : {Case{"full", {3000, 1100}, 8, 4, 128}, Case{"sf", {4274}, 8, 8, 128, 1024, 64},
                        Case{"sf", packed, 8, 4, 64, 512, 20}, Case{"s2-wrap", {4097}, 8, 8, 64, 512}}) {
    INFO(c.name());
    AttentionBuffers b(c.dtype, c.lengths, c.heads, c.kv_heads, c.dim,
                       pattern_of(c.pattern, c.heads, c.group, c.sinks));
    random_values(b.shape.tokens * b.fused_row, c.dtype, 3, b.qkv);
    random_values(b.shape.tokens * b.row, c.dtype, 4, b.d_out);
    for (const AttentionKernel kernel : kernels_for(c.dtype, c.dim)) {
      INFO(name_of(kernel));
      b.use(kernel);
      std::vector<char> out, grad;
      int differing = 0;
      for (int run = 0; run < 100; ++run) {
        b.d_qkv.poison();
        b.workspace->poison();
        b.forward();
        b.backward();
        auto now = b.d_qkv.download();
        auto out_now = b.out.download();
        if (run > 0) differing += now != grad || out_now != out;
        grad = std::move(now), out = std::move(out_now);
      }
      CHECK(differing == 0);
    }
  }
}

TEST_CASE("GPU attention refuses by name what it cannot do") {
  CHECK_THROWS_WITH_AS(AttentionBuffers(DType::bf16, {8}, 1, 1, 80, {}).forward(),
                       "attention on the GPU: head_dim 80 is not supported; 64 and 128 are", Error);
}

}  // namespace sinklora::test
