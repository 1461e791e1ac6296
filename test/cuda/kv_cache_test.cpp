// Attention to a cache and eviction on the GPU against the CPU, and whole sessions.
#include <numeric>

#include "infer/cached_session.h"
#include "kernels/arena.h"
#include "kernels/backend.h"
#include "test/cuda/gpu_test.h"
#include "test/model/toy_model.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

struct Case {
  int64_t tokens, count, heads, kv_heads, dim, padding;
};
// Packed heads of 64 and 128, others, rows at odd addresses; whole and broken runs of 256 keys.
constexpr Case kCases[] = {{1, 0, 4, 2, 64, 8},
                           {70, 0, 6, 2, 64, 8},
                           {1, 255, 6, 2, 64, 8},
                           {1, 256, 8, 8, 128, 8},
                           {3, 1000, 8, 2, 128, 8},
                           {1, 5000, 9, 3, 64, 8},
                           {33, 600, 4, 1, 80, 8},
                           {2, 77, 4, 2, 8, 0},
                           {5, 300, 4, 2, 64, 1},
                           {300, 20, 3, 1, 24, 0},
                           {1, 512, 2, 1, 256, 8},
                           // Chunks that the flash kernel takes: beside its tiles of 128 and on them.
                           {200, 700, 8, 2, 128, 8},
                           {130, 128, 4, 4, 64, 8},
                           {16, 1000, 6, 2, 64, 8},
                           {300, 0, 6, 2, 128, 8},
                           {65, 255, 2, 2, 128, 0}};
enum Index {
  kOut,
  kLse,
  kNewMass,
  kMass,
  kQ,
  kK,
  kV,
  kCachedK,
  kCachedV,
  kPositions,
  kRanks,
  kCosines,
  kSines
};

std::vector<Argument> arguments_of(const Case& c) {
  const int64_t width = c.heads * c.dim, kv_width = c.kv_heads * c.dim, capacity = c.count + 5;
  const int64_t keys = c.count + c.tokens, terms = keys + c.dim, half = c.dim / 2;
  Values cosines, sines, ranks(static_cast<size_t>(c.kv_heads * capacity), 1e6);
  for (int64_t p = 0; p < keys; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * std::pow(100.0, -static_cast<double>(i) / 8.0);
      cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
    }
  for (int64_t g = 0; g < c.kv_heads; ++g)
    for (int64_t s = 0; s < c.count; ++s)
      ranks[static_cast<size_t>(g * capacity + (s * (c.count % 7 == 0 ? 1 : 7) + g) % c.count)] =
          static_cast<double>(s);
  Values cached_k = normal_values(capacity * kv_width, "cached k"),
         cached_v = normal_values(capacity * kv_width, "cached v");
  for (int64_t i = c.count * kv_width; i < capacity * kv_width; ++i)
    cached_k[static_cast<size_t>(i)] = cached_v[static_cast<size_t>(i)] = std::nan("");
  const int64_t received = c.tokens * c.heads / c.kv_heads + terms;
  return {{.name = "out",
           .rows = c.tokens,
           .columns = width,
           .values = {},
           .output = true,
           .padding = c.padding,
           .terms = terms},
          {.name = "lse",
           .kind = Kind::stat,
           .rows = c.heads,
           .columns = c.tokens,
           .values = {},
           .output = true,
           .terms = terms},
          {.name = "new_mass",
           .kind = Kind::stat,
           .rows = c.kv_heads,
           .columns = c.tokens,
           .values = {},
           .output = true,
           .padding = 3,
           .terms = received},
          {.name = "mass",
           .kind = Kind::stat,
           .rows = c.kv_heads,
           .columns = capacity,
           .values = Values(static_cast<size_t>(c.kv_heads * capacity), 0.25),
           .output = true,
           .terms = received},
          {.name = "q",
           .rows = c.tokens,
           .columns = width,
           .values = normal_values(c.tokens * width, "q"),
           .padding = c.padding},
          {.name = "k",
           .rows = c.tokens,
           .columns = kv_width,
           .values = normal_values(c.tokens * kv_width, "k"),
           .padding = c.padding},
          {.name = "v",
           .rows = c.tokens,
           .columns = kv_width,
           .values = normal_values(c.tokens * kv_width, "v"),
           .padding = c.padding},
          {.name = "cached k", .rows = capacity, .columns = kv_width, .values = cached_k},
          {.name = "cached v", .rows = capacity, .columns = kv_width, .values = cached_v},
          {.name = "positions", .kind = Kind::i32, .rows = c.kv_heads, .columns = capacity, .values = ranks},
          {.name = "ranks", .kind = Kind::i32, .rows = c.kv_heads, .columns = capacity, .values = ranks},
          {.name = "cosines", .kind = Kind::stat, .rows = keys, .columns = half, .values = cosines},
          {.name = "sines", .kind = Kind::stat, .rows = keys, .columns = half, .values = sines}};
}

void attend(Ops& ops, const Case& c, const std::vector<Tensor>& t, bool turned) {
  const KvCacheView cache{t[kCachedK], t[kCachedV], t[kPositions], turned ? t[kRanks] : Tensor{},
                          t[kMass],    c.count};
  ops.cached_attention(t[kOut], t[kLse], t[kNewMass], t[kQ], t[kK], t[kV], cache, t[kCosines], t[kSines],
                       c.dim);
}

// Keys turned to where they are, and rounded as RoPE leaves them in a type: what a plain evaluation in bf16
// works on.
std::vector<Argument> with_turned_keys(std::vector<Argument> arguments, const Case& c, DType type) {
  const int64_t half = c.dim / 2, width = c.kv_heads * c.dim, capacity = c.count + 5;
  const auto turn = [&](Values& keys, int64_t rows, auto angle_of) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t g = 0; g < c.kv_heads; ++g)
        for (int64_t i = 0; i < half; ++i) {
          const auto angle = static_cast<size_t>(angle_of(g, r) * half + i);
          double& a = keys[static_cast<size_t>(r * width + g * c.dim + i)];
          double& b = keys[static_cast<size_t>(r * width + g * c.dim + half + i)];
          const double x = a, y = b, cosine = arguments[kCosines].values[angle],
                       sine = arguments[kSines].values[angle];
          a = rounded(x * cosine - y * sine, type), b = rounded(y * cosine + x * sine, type);
        }
  };
  const Values ranks = arguments[kRanks].values;
  turn(arguments[kCachedK].values, c.count, [&](int64_t g, int64_t r) {
    return static_cast<int64_t>(ranks[static_cast<size_t>(g * capacity + r)]);
  });
  turn(arguments[kK].values, c.tokens, [&](int64_t, int64_t r) { return c.count + r; });
  return arguments;
}

}  // namespace

TEST_CASE("cached attention on the GPU: output, log-sum-exp and mass against f64") {
  for (const Case& c : kCases)
    for (const bool turned : {false, true}) {
      if (quick() && c.tokens * c.count > 100'000) continue;
      CAPTURE(c.tokens);
      CAPTURE(c.count);
      CAPTURE(c.dim);
      CAPTURE(turned);
      const Plain plain = [&](const std::vector<Argument>& arguments, DType activation) {
        const bool round = turned && activation == DType::bf16;
        return plain_evaluation(
            round ? with_turned_keys(arguments, c, activation) : arguments,
            [&](Ops& ops, const std::vector<Tensor>& t) { attend(ops, c, t, turned && !round); }, activation);
      };
      check_op(
          arguments_of(c), [&](Ops& ops, const std::vector<Tensor>& t) { attend(ops, c, t, turned); }, 3,
          plain);
    }
}

namespace {

constexpr int64_t kHeads = 3, kDim = 24, kCapacity = 40;

// One backend's cache and what it gets.
struct Cache {
  explicit Cache(Ops& ops, int64_t most_tokens) : ops(ops) {
    for (Tensor* const t : {&view.k, &view.v})
      arena.take(t, ops.activation_dtype(), {kCapacity, kHeads * kDim});
    for (Tensor* const t : {&view.positions, &view.ranks}) arena.take(t, DType::i32, {kHeads, kCapacity});
    arena.take(&view.mass, ops.statistic_dtype(), {kHeads, kCapacity});
    for (Tensor* const t : {&k, &v}) arena.take(t, ops.activation_dtype(), {most_tokens, kHeads * kDim});
    arena.take(&mass, ops.statistic_dtype(), {kHeads * most_tokens});
    arena.allocate(ops);
  }
  // Position, mass, keys and values of every head's tokens, in order of rank.
  std::vector<float> contents(int64_t count) {
    std::vector<int32_t> positions(kHeads * kCapacity), ranks = positions;
    ops.download(positions.data(), view.positions);
    ops.download(ranks.data(), view.ranks);
    const auto masses = download_numbers<float>(ops, view.mass), keys = download_numbers<float>(ops, view.k),
               values = download_numbers<float>(ops, view.v);
    std::vector<float> all;
    for (int64_t g = 0; g < kHeads; ++g)
      for (int64_t rank = 0; rank < count; ++rank) {
        const auto* const row = ranks.data() + g * kCapacity;
        const int64_t slot = std::find(row, row + count, rank) - row;
        REQUIRE(slot < count);
        const auto at = static_cast<size_t>(g * kCapacity + slot);
        all.push_back(static_cast<float>(positions[at])), all.push_back(masses[at]);
        for (int64_t d = 0; d < kDim; ++d) {
          const auto element = static_cast<size_t>(slot * kHeads * kDim + g * kDim + d);
          all.push_back(keys[element]), all.push_back(values[element]);
        }
      }
    return all;
  }

  Ops& ops;
  KvCacheView view;
  Tensor k, v, mass;
  Arena arena{"test"};
};

}  // namespace

TEST_CASE("append_to_cache on the GPU keeps what the CPU keeps") {
  constexpr int64_t kMost = 1500;
  for (const DType activation : {DType::f32, DType::bf16})
    for (const KvRetention keep :
         {KvRetention{0, 20, 20}, KvRetention{4, 0, 36}, KvRetention{3, 27, 10}, KvRetention{0, 40, 0}}) {
      CAPTURE(keep.sinks);
      CAPTURE(keep.heavy);
      Ops& gpu = activation == DType::f32 ? *backends().f32 : *backends().bf16;
      Cache ours(gpu, kMost), theirs(*backends().single, kMost);
      int64_t length = 0;
      for (const int64_t tokens : {7, 1, 31, 1, 1, 1, 5, 100, 1, 1, 1500, 1, 1}) {
        // Exact in bf16; masses have few values, so that there are ties.
        Values k = rounded(normal_values(tokens * kHeads * kDim, fmt::format("k {}", length)), DType::bf16);
        Values v = rounded(normal_values(tokens * kHeads * kDim, fmt::format("v {}", length)), DType::bf16);
        Values mass = normal_values(kHeads * tokens, fmt::format("mass {}", length), 4.0);
        for (double& x : mass) x = std::floor(std::fabs(x));
        for (Cache* const cache : {&ours, &theirs}) {
          const auto put = [&](const Tensor& whole, const Values& from) {
            upload_numbers(cache->ops, whole, std::vector<float>(from.begin(), from.end()));
            return whole;
          };
          const Tensor new_k = put(cache->k.row_slice(0, tokens), k),
                       new_v = put(cache->v.row_slice(0, tokens), v);
          Tensor new_mass = put(cache->mass.row_slice(0, kHeads * tokens), mass);
          new_mass = {new_mass.data, new_mass.dtype, {kHeads, tokens}, new_mass.device};
          KvCacheView view = cache->view;
          view.count = std::min(length, kCapacity);
          cache->ops.append_to_cache(view, new_k, new_v, new_mass, length, keep);
        }
        length += tokens;
        CHECK(ours.contents(std::min(length, kCapacity)) == theirs.contents(std::min(length, kCapacity)));
      }
    }
}

TEST_CASE(
    "sessions on the GPU: a full cache as near to f64 as on the CPU; h2o with room for all is it, bit for "
    "bit") {
  constexpr int64_t kContext = 200;
  const int64_t length = quick() ? 41 : 97;
  LlamaConfig config = toy_config();
  const ModelOptions options = lora_plus(config, {"q", "k", "v", "o"});
  const auto model = [&](std::unique_ptr<Ops> ops) {
    return std::make_unique<ToyModel>(std::move(ops), config, options, kContext, Recompute::block(), kMlpTile,
                                      kContext);
  };
  const auto oracle = model(make_cpu_ops(DType::f64)), cpu = model(make_cpu_ops(DType::f32)),
             gpu = model(make_ops("cuda", "fp32"));
  const Batch batch = toy_batch({length}, config.vocab_size, 3);
  const auto logits = [&](ToyModel& m, const KvCachePolicy& policy, size_t piece) {
    CachedSession session(m.llama, policy);
    std::vector<float> last;
    for (size_t begin = 0; begin < batch.ids.size(); begin += piece)
      last = session.extend(std::span(batch.ids).subspan(begin, std::min(piece, batch.ids.size() - begin)));
    return Values(last.begin(), last.end());
  };
  const KvCachePolicy full{kContext, false, {}, KvPositions::original};
  const KvCachePolicy roomy{100, true, {0, 50, 50}, KvPositions::original};
  for (const size_t piece : {size_t{1}, size_t{13}, batch.ids.size()}) {
    CAPTURE(piece);
    const Values exact = logits(*oracle, full, piece), plain = logits(*cpu, full, piece),
                 ours = logits(*gpu, full, piece);
    const Errors size = error_between(exact, Values(exact.size()));
    CHECK(error_between(ours, exact).rms <=
          kAllowed * std::max(error_between(plain, exact).rms, 32 * kUnit * size.rms));
    CHECK(logits(*gpu, roomy, piece) == ours);
    for (const KvPositions positions : {KvPositions::original, KvPositions::index}) {
      const KvCachePolicy streaming{30, true, {2, 0, 28}, positions};
      const Values few = logits(*oracle, streaming, piece);
      CHECK(error_between(logits(*gpu, streaming, piece), few).rms <=
            kAllowed *
                std::max(error_between(logits(*cpu, streaming, piece), few).rms, 32 * kUnit * size.rms));
    }
  }
}
