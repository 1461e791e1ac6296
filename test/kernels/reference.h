// Every op's formula as plain loops, for tests: dense, slow, one sum after the other in the type asked for.
#pragma once

#include <cmath>
#include <vector>

#include "test/kernels/kernel_test.h"

namespace sinklora::test::reference {

struct AttentionCase {
  std::vector<int64_t> lengths;
  int64_t heads = 1, kv_heads = 1, head_dim = 8;
  AttentionPattern pattern;

  int64_t tokens() const {
    int64_t sum = 0;
    for (const int64_t length : lengths) sum += length;
    return sum;
  }
};

// Calls visit(head, query token, key token) for every visible pair.
template <class Visit>
void for_each_pair(const AttentionCase& c, Visit&& visit) {
  for (int64_t h = 0; h < c.heads; ++h) {
    int64_t begin = 0;
    for (const int64_t length : c.lengths) {
      for (int64_t i = 0; i < length; ++i)
        for (int64_t j = 0; j < length; ++j)
          if (visible(c.pattern, h, i, j, length)) visit(h, begin + i, begin + j);
      begin += length;
    }
  }
}

template <class T>
struct Attention {
  Array<T> out, lse, d_q, d_k, d_v;
};

// Forward, and backward when d_out is not empty, over the dense matrix of probabilities.
template <class T>
Attention<T> attention(const AttentionCase& c, const Array<T>& q, const Array<T>& k, const Array<T>& v,
                       const Array<T>& d_out = {}) {
  const int64_t tokens = c.tokens(), dim = c.head_dim, group = c.heads / c.kv_heads;
  const T scale = T{1} / std::sqrt(static_cast<T>(dim));
  Array<T> scores(c.heads * tokens, tokens), most(c.heads, tokens, -std::numeric_limits<T>::infinity()),
      sum(c.heads, tokens);
  Attention<T> result{Array<T>(tokens, c.heads * dim), Array<T>(c.heads, tokens), {}, {}, {}};
  const auto dot = [&](const Array<T>& a, int64_t row_a, int64_t head_a, const Array<T>& b, int64_t row_b,
                       int64_t head_b) {
    T total = 0;
    for (int64_t d = 0; d < dim; ++d) total += a(row_a, head_a * dim + d) * b(row_b, head_b * dim + d);
    return total;
  };
  for_each_pair(c, [&](int64_t h, int64_t i, int64_t j) {
    T& s = scores(h * tokens + i, j);
    s = scale * dot(q, i, h, k, j, h / group);
    most(h, i) = std::max(most(h, i), s);
  });
  for_each_pair(c, [&](int64_t h, int64_t i, int64_t j) {
    sum(h, i) += std::exp(scores(h * tokens + i, j) - most(h, i));
  });
  for_each_pair(c, [&](int64_t h, int64_t i, int64_t j) {
    T& p = scores(h * tokens + i, j);
    p = std::exp(p - most(h, i)) / sum(h, i);
    for (int64_t d = 0; d < dim; ++d) result.out(i, h * dim + d) += p * v(j, h / group * dim + d);
    result.lse(h, i) = most(h, i) + std::log(sum(h, i));
  });
  if (d_out.values.empty()) return result;
  result.d_q = Array<T>(tokens, c.heads * dim);
  result.d_k = result.d_v = Array<T>(tokens, c.kv_heads * dim);
  for_each_pair(c, [&](int64_t h, int64_t i, int64_t j) {
    const int64_t kv = h / group;
    const T p = scores(h * tokens + i, j);
    const T ds = p * (dot(d_out, i, h, v, j, kv) - dot(d_out, i, h, result.out, i, h)) * scale;
    for (int64_t d = 0; d < dim; ++d) {
      result.d_q(i, h * dim + d) += ds * k(j, kv * dim + d);
      result.d_k(j, kv * dim + d) += ds * q(i, h * dim + d);
      result.d_v(j, kv * dim + d) += p * d_out(i, h * dim + d);
    }
  });
  return result;
}

// a b^T
template <class T>
Array<T> product_transposed(const Array<T>& a, const Array<T>& b) {
  Array<T> c(a.rows, b.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < b.rows; ++j)
      for (int64_t k = 0; k < a.columns; ++k) c(i, j) += a(i, k) * b(j, k);
  return c;
}
template <class T>
Array<T> transpose(const Array<T>& a) {
  Array<T> t(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.columns; ++j) t(j, i) = a(i, j);
  return t;
}

template <class T>
Array<T> rmsnorm(const Array<T>& x, const Array<T>& gain, double epsilon) {
  Array<T> y(x.rows, x.columns);
  for (int64_t t = 0; t < x.rows; ++t) {
    T squares = 0;
    for (int64_t c = 0; c < x.columns; ++c) squares += x(t, c) * x(t, c);
    const T r = T{1} / std::sqrt(squares / static_cast<T>(x.columns) + static_cast<T>(epsilon));
    for (int64_t c = 0; c < x.columns; ++c) y(t, c) = gain(0, c) * x(t, c) * r;
  }
  return y;
}

template <class T>
Array<T> swiglu(const Array<T>& gate_up) {
  const int64_t width = gate_up.columns / 2;
  Array<T> y(gate_up.rows, width);
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t c = 0; c < width; ++c)
      y(t, c) = gate_up(t, c) / (T{1} + std::exp(-gate_up(t, c))) * gate_up(t, width + c);
  return y;
}

template <class T>
struct Head {
  Array<T> nll, d_hidden, d_weight;
};
template <class T>
Head<T> head(const Array<T>& hidden, const Array<T>& weight, const Array<int32_t>& targets,
             double loss_scale) {
  Array<T> logits = product_transposed(hidden, weight);
  Head<T> result{Array<T>(hidden.rows, 1), Array<T>(hidden.rows, hidden.columns),
                 Array<T>(weight.rows, weight.columns)};
  for (int64_t t = 0; t < hidden.rows; ++t) {
    const int32_t target = targets(t, 0);
    if (target < 0) continue;
    T most = logits(t, 0), sum = 0;
    for (int64_t v = 0; v < weight.rows; ++v) most = std::max(most, logits(t, v));
    for (int64_t v = 0; v < weight.rows; ++v) sum += std::exp(logits(t, v) - most);
    result.nll(t, 0) = most + std::log(sum) - logits(t, target);
    for (int64_t v = 0; v < weight.rows; ++v) {
      const T d =
          static_cast<T>(loss_scale) * (std::exp(logits(t, v) - most) / sum - (v == target ? T{1} : T{0}));
      for (int64_t c = 0; c < hidden.columns; ++c) {
        result.d_hidden(t, c) += d * weight(v, c);
        result.d_weight(v, c) += d * hidden(t, c);
      }
    }
  }
  return result;
}

}  // namespace sinklora::test::reference
