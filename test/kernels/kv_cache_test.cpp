// Attention to a cache and what the cache keeps, against plain loops.
#include <numeric>
#include <set>

#include "test/kernels/reference.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

struct Case {
  int64_t tokens, count, heads, kv_heads, head_dim;
  int64_t keys() const { return count + tokens; }
  int64_t spare() const { return 3; }  // slots beyond count, whose contents must not matter
};
constexpr Case kCases[] = {{1, 0, 2, 1, 8},    {5, 0, 4, 2, 8},    {1, 1, 3, 3, 2},
                           {1, 37, 6, 2, 16},  {7, 130, 8, 1, 32}, {70, 301, 9, 3, 64},
                           {1, 1031, 4, 4, 8}, {300, 3, 4, 2, 24}, {2, 9, 140, 1, 4}};

template <class T>
struct Data {
  Array<T> q, k, v, cached_k, cached_v, mass, cosines, sines;
  Array<int32_t> positions, ranks;
};

// In every head, slot s holds the token of a rank of its own choice.
Data<double> make_data(const Case& c) {
  const int64_t width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim,
                capacity = c.count + c.spare();
  Data<double> d{random_array<double>(c.tokens, width, "q"),
                 random_array<double>(c.tokens, kv_width, "k"),
                 random_array<double>(c.tokens, kv_width, "v"),
                 random_array<double>(capacity, kv_width, "cached k"),
                 random_array<double>(capacity, kv_width, "cached v"),
                 random_array<double>(c.kv_heads, capacity, "mass"),
                 Array<double>(c.keys(), c.head_dim / 2),
                 Array<double>(c.keys(), c.head_dim / 2),
                 Array<int32_t>(c.kv_heads, capacity),
                 Array<int32_t>(c.kv_heads, capacity, 1 << 20)};
  for (int64_t p = 0; p < c.keys(); ++p)
    for (int64_t i = 0; i < c.head_dim / 2; ++i) {
      const double angle = static_cast<double>(p) * std::pow(100.0, -static_cast<double>(i) / 4.0);
      d.cosines(p, i) = static_cast<double>(static_cast<float>(std::cos(angle)));
      d.sines(p, i) = static_cast<double>(static_cast<float>(std::sin(angle)));
    }
  for (int64_t g = 0; g < c.kv_heads; ++g)
    for (int64_t s = 0; s < c.count; ++s) {
      const int64_t slot = (s * (c.count % 7 == 0 ? 1 : 7) + g) % c.count;  // a permutation
      d.ranks(g, slot) = static_cast<int32_t>(s);
      d.positions(g, slot) = 2 * d.ranks(g, slot);
    }
  for (int64_t s = c.count; s < capacity; ++s)
    for (int64_t x = 0; x < kv_width; ++x) d.cached_k(s, x) = d.cached_v(s, x) = std::nan("");
  return d;
}

template <class T>
Data<T> in(const Data<double>& d) {
  return {as<T>(d.q),    as<T>(d.k),       as<T>(d.v),     as<T>(d.cached_k), as<T>(d.cached_v),
          as<T>(d.mass), as<T>(d.cosines), as<T>(d.sines), d.positions,       d.ranks};
}

template <class T>
struct Result {
  Array<T> out, lse, mass, new_mass;
};

template <class T>
Result<T> reference_attention(const Case& c, const Data<T>& d, bool turned) {
  const int64_t dim = c.head_dim, group = c.heads / c.kv_heads;
  Result<T> r{Array<T>(c.tokens, c.heads * dim), Array<T>(c.heads, c.tokens), d.mass,
              Array<T>(c.kv_heads, c.tokens)};
  const auto key = [&](int64_t g, int64_t j, int64_t e) {
    const bool old = j < c.count;
    const auto at = [&](int64_t x) {
      return old ? d.cached_k(j, g * dim + x) : d.k(j - c.count, g * dim + x);
    };
    if (!turned) return at(e);
    const int64_t p = old ? d.ranks(g, j) : j, half = dim / 2, i = e % half;
    return e < half ? at(i) * d.cosines(p, i) - at(half + i) * d.sines(p, i)
                    : at(half + i) * d.cosines(p, i) + at(i) * d.sines(p, i);
  };
  for (int64_t h = 0; h < c.heads; ++h)
    for (int64_t t = 0; t < c.tokens; ++t) {
      const int64_t g = h / group, seen = c.count + t + 1;
      std::vector<T> p(static_cast<size_t>(seen));
      T most = -std::numeric_limits<T>::infinity(), sum = 0;
      for (int64_t j = 0; j < seen; ++j) {
        T score = 0;
        for (int64_t e = 0; e < dim; ++e) score += d.q(t, h * dim + e) * key(g, j, e);
        score /= std::sqrt(static_cast<T>(dim));
        most = std::max(most, p[static_cast<size_t>(j)] = score);
      }
      for (T& x : p) sum += x = std::exp(x - most);
      r.lse(h, t) = most + std::log(sum);
      for (int64_t j = 0; j < seen; ++j) {
        const T share = p[static_cast<size_t>(j)] / sum;
        for (int64_t e = 0; e < dim; ++e)
          r.out(t, h * dim + e) +=
              share * (j < c.count ? d.cached_v(j, g * dim + e) : d.v(j - c.count, g * dim + e));
        (j < c.count ? r.mass(g, j) : r.new_mass(g, j - c.count)) += share;
      }
    }
  return r;
}

template <class T>
Result<T> attend(const Case& c, const Data<T>& d, bool turned, bool with_mass) {
  const auto ops = make_cpu_ops(dtype_of<T>());
  Result<T> r{Array<T>(c.tokens, c.heads * c.head_dim), Array<T>(c.heads, c.tokens), d.mass,
              Array<T>(c.kv_heads, c.tokens)};
  const KvCacheView cache{d.cached_k.view(),
                          d.cached_v.view(),
                          d.positions.view(),
                          turned ? d.ranks.view() : Tensor{},
                          with_mass ? r.mass.view() : Tensor{},
                          c.count};
  ops->cached_attention(r.out.view(), r.lse.view(), with_mass ? r.new_mass.view() : Tensor{}, d.q.view(),
                        d.k.view(), d.v.view(), cache, d.cosines.view(), d.sines.view(), c.head_dim);
  return r;
}

}  // namespace

TEST_CASE("cached attention: output, log-sum-exp and mass are those of plain loops; threads change no bit") {
  for (const Case& c : kCases)
    for (const bool turned : {false, true}) {
      CAPTURE(c.tokens);
      CAPTURE(c.count);
      CAPTURE(turned);
      const Data<double> d = make_data(c);
      const Result<double> exact = reference_attention(c, d, turned);
      const Result<double> got = attend(c, d, turned, true);
      const double doubles = rounding(c.keys() + c.head_dim, 8, kDoubleEpsilon);
      CHECK(relative_error(got.out, exact.out) < doubles);
      CHECK(relative_error(got.lse, exact.lse) < doubles);
      CHECK(relative_error(got.mass, exact.mass) < doubles);
      CHECK(relative_error(got.new_mass, exact.new_mass) < doubles);

      const Data<float> f = in<float>(d);
      const Result<float> plain = reference_attention(c, f, turned);
      const auto allowed = [](double of_plain) {  // a few numbers may be exact by luck
        return 3 * std::max<double>(of_plain, std::numeric_limits<float>::epsilon());
      };
      Result<float> runs[2];
      on_one_and_two_threads([&](int i) { runs[i] = attend(c, f, turned, true); });
      CHECK(relative_error(runs[0].out, exact.out) < allowed(relative_error(plain.out, exact.out)));
      CHECK(relative_error(runs[0].lse, exact.lse) < allowed(relative_error(plain.lse, exact.lse)));
      CHECK(relative_error(runs[0].mass, exact.mass) < allowed(relative_error(plain.mass, exact.mass)));
      CHECK(relative_error(runs[0].new_mass, exact.new_mass) <
            allowed(relative_error(plain.new_mass, exact.new_mass)));
      CHECK(same_bits(runs[0].out, runs[1].out));
      CHECK(same_bits(runs[0].mass, runs[1].mass));
      CHECK(same_bits(attend(c, f, turned, false).out, runs[0].out));  // collecting mass is not seen
    }
}

TEST_CASE("append_to_cache keeps sinks, heavy and recent tokens, with their keys, values, ranks and mass") {
  constexpr int64_t kHeads = 2, kDim = 2;
  const auto ops = make_cpu_ops(DType::f32);
  for (const KvRetention keep : {KvRetention{0, 5, 4}, KvRetention{3, 0, 6}, KvRetention{2, 4, 3},
                                 KvRetention{0, 0, 9}, KvRetention{0, 9, 0}}) {
    constexpr int64_t kCapacity = 9;
    CAPTURE(keep.sinks);
    CAPTURE(keep.heavy);
    CAPTURE(keep.recent);
    Array<float> k(kCapacity, kHeads * kDim), v = k, mass(kHeads, kCapacity);
    Array<int32_t> positions(kHeads, kCapacity), ranks(kHeads, kCapacity);
    std::vector<std::vector<std::pair<int64_t, float>>> kept(kHeads);  // position, mass
    int64_t length = 0;
    const RandomStream random(3, "append");
    for (const int64_t tokens : {4, 1, 4, 1, 1, 1, 3, 12, 1, 2, 30, 1, 1}) {
      Array<float> new_k(tokens, kHeads * kDim), new_v = new_k, new_mass(kHeads, tokens);
      for (int64_t i = 0; i < tokens; ++i)
        for (int64_t g = 0; g < kHeads; ++g) {
          for (int64_t e = 0; e < kDim; ++e) {
            new_k(i, g * kDim + e) = static_cast<float>(1000 * g + 10 * (length + i) + e);
            new_v(i, g * kDim + e) = -new_k(i, g * kDim + e);
          }
          // Few values, so that there are ties.
          new_mass(g, i) = static_cast<float>(random.below(static_cast<uint64_t>(2 * (length + i) + g), 4));
          kept[static_cast<size_t>(g)].emplace_back(length + i, new_mass(g, i));
        }
      const KvCacheView cache{k.view(),     v.view(),    positions.view(),
                              ranks.view(), mass.view(), std::min(length, kCapacity)};
      ops->append_to_cache(cache, new_k.view(), new_v.view(), new_mass.view(), length, keep);
      length += tokens;
      const int64_t count = std::min(length, kCapacity);
      for (int64_t g = 0; g < kHeads; ++g) {
        auto& own = kept[static_cast<size_t>(g)];
        while (static_cast<int64_t>(own.size()) > count) {  // the least mass goes, the later one of equals
          auto worst = own.end();
          for (auto each = own.begin(); each != own.end(); ++each)
            if (each->first >= keep.sinks && each->first < length - keep.recent &&
                (worst == own.end() || each->second <= worst->second))
              worst = each;
          REQUIRE(worst != own.end());
          own.erase(worst);
        }
        std::set<int64_t> seen;
        for (int64_t slot = 0; slot < count; ++slot) {
          const int64_t rank = ranks(g, slot);
          REQUIRE(rank >= 0);
          REQUIRE(rank < count);
          seen.insert(rank);
          const auto [position, received] = own[static_cast<size_t>(rank)];
          CHECK(positions(g, slot) == position);
          CHECK(mass(g, slot) == received);
          CHECK(k(slot, g * kDim + 1) == static_cast<float>(1000 * g + 10 * position + 1));
          CHECK(v(slot, g * kDim) == -static_cast<float>(1000 * g + 10 * position));
        }
        CHECK(static_cast<int64_t>(seen.size()) == count);
      }
    }
  }
}

TEST_CASE("append_to_cache refuses to outgrow a cache that evicts nothing") {
  const auto ops = make_cpu_ops(DType::f32);
  Array<float> k(3, 4), v = k, new_k(2, 4), new_v = new_k;
  CHECK_THROWS_AS(
      ops->append_to_cache({k.view(), v.view(), {}, {}, {}, 2}, new_k.view(), new_v.view(), {}, 2, {}),
      Error);
}
