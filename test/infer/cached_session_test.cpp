// Sessions with a cache: equal to passes over the whole text, to each other, and to the papers' algorithms as
// plain loops.
#include "infer/cached_session.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "test/model/toy_model.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t kContext = 400;

std::unique_ptr<ToyModel> toy(DType compute, int64_t max_tokens, int64_t layers = 2) {
  LlamaConfig config = toy_config();
  config.num_layers = layers;
  return std::make_unique<ToyModel>(compute, config, lora_plus(config, {"q", "k", "v", "o"}), max_tokens,
                                    Recompute::block(), kMlpTile, kContext);
}

std::vector<int32_t> random_ids(int64_t count) {
  const RandomStream random(4, "session ids");
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(random.below(i, static_cast<uint64_t>(toy_config().vocab_size)));
  return ids;
}

// The logits after every piece of `ids`.
std::vector<std::vector<float>> feed(Session& session, std::span<const int32_t> ids, int64_t piece) {
  std::vector<std::vector<float>> all;
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(piece))
    all.push_back(
        session.extend(ids.subspan(begin, std::min(static_cast<size_t>(piece), ids.size() - begin))));
  return all;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> uncached(ToyModel& model, std::span<const int32_t> ids) {
  const Sample sample{{ids.begin(), ids.end()}, std::vector<int32_t>(ids.size(), kNotScored), {0}};
  const Batch batch = make_batch({sample}, {0});
  return model.llama.logits(batch, {}, batch.tokens() - 1, 1);
}

KvCachePolicy full_policy() { return {kContext, false, {}, KvPositions::original}; }
KvCachePolicy policy_of(const KvRetention& keep, KvPositions positions) {
  return {keep.sinks + keep.heavy + keep.recent, true, keep, positions};
}

}  // namespace

TEST_CASE("a session with a full cache gives the logits of passes over the whole text") {
  const auto exact = toy(DType::f64, kContext), single = toy(DType::f32, kContext);
  const auto small_exact = toy(DType::f64, 13), small_single = toy(DType::f32, 13);  // several passes a piece
  for (const int64_t length : {1, 2, 31, 97, 300}) {
    const std::vector<int32_t> ids = random_ids(length);
    const std::vector<float> oracle = uncached(*exact, ids), plain = uncached(*single, ids);
    const double plain_error = std::max(relative_error(plain, oracle), 1e-7);
    for (const int64_t piece : {1, 7, 32, 299, 300}) {
      CAPTURE(length);
      CAPTURE(piece);
      for (ToyModel* const model : {exact.get(), small_exact.get()}) {
        CachedSession session(model->llama, full_policy());
        // Logits are floats: errors of a double, far below 1e-10, leave all of them as they are.
        CHECK(relative_error(feed(session, ids, piece).back(), oracle) < 1e-10);
        CHECK(session.length() == length);
      }
      for (ToyModel* const model : {single.get(), small_single.get()}) {
        CachedSession session(model->llama, full_policy());
        CHECK(relative_error(feed(session, ids, piece).back(), oracle) < 3 * plain_error);
      }
    }
  }
}

TEST_CASE("h2o and streaming with a budget of the whole text are full caches, bit for bit") {
  const auto model = toy(DType::f32, kContext);
  const std::vector<int32_t> ids = random_ids(150);
  for (const int64_t piece : {1, 13, 64}) {
    CachedSession full(model->llama, full_policy());
    const auto expected = feed(full, ids, piece);
    for (const KvRetention keep : {KvRetention{0, 75, 75}, KvRetention{0, 200, 0}, KvRetention{4, 0, 146}}) {
      CachedSession session(model->llama, policy_of(keep, KvPositions::original));
      const auto got = feed(session, ids, piece);
      bool same = got.size() == expected.size();
      for (size_t i = 0; same && i < got.size(); ++i) same = same_bits(got[i], expected[i]);
      CHECK(same);
      session.reset();  // and once more
      CHECK(same_bits(feed(session, ids, piece).back(), expected.back()));
    }
  }
}

TEST_CASE(
    "relativity: what is left of an evicted text is that text alone, whatever its positions and chunks") {
  // In one layer, keys and values depend on their own token only: the last token of a chunk sees the sinks,
  // the window and its chunk as if nothing else had ever been.
  const auto model = toy(DType::f32, kContext, 1);
  const std::vector<int32_t> ids = random_ids(333);
  for (const int64_t sinks : {0, 4})
    for (const KvPositions positions : {KvPositions::original, KvPositions::index})
      for (const int64_t chunk : {1, 32, 60, 64, 7}) {
        // Original positions keep the sinks where they were, and that is far away.
        if (sinks > 0 && positions == KvPositions::original) continue;
        CAPTURE(sinks);
        CAPTURE(chunk);
        constexpr int64_t kWindow = 60;
        CachedSession session(model->llama, policy_of({sinks, 0, kWindow}, positions));
        const auto length = static_cast<int64_t>(ids.size());
        const int64_t last = (length - 1) % chunk + 1;
        const std::vector<float> got = feed(session, ids, chunk).back();
        std::vector<int32_t> seen(ids.begin(), ids.begin() + sinks);
        seen.insert(seen.end(), ids.end() - kWindow - last, ids.end());
        CHECK(relative_error(got, uncached(*model, seen)) < 1e-5);
      }
}

TEST_CASE("sequences of a batch, of unequal lengths and in unequal chunks, are those of sessions alone") {
  const auto model = toy(DType::f64, 70);
  const LlamaConfig& config = model->llama.config();
  const std::vector<int32_t> ids = random_ids(200);
  for (const KvPositions positions : {KvPositions::original, KvPositions::index}) {
    const KvCachePolicy policy = policy_of({1, 8, 11}, positions);
    std::vector<std::unique_ptr<KvCache>> caches;
    std::vector<std::unique_ptr<CachedSession>> alone;
    for (int i = 0; i < 3; ++i) {
      caches.push_back(std::make_unique<KvCache>(model->llama.ops(), config, policy, 70));
      alone.push_back(std::make_unique<CachedSession>(model->llama, policy));
    }
    for (const std::vector<size_t>& lengths :
         {std::vector<size_t>{37, 1, 5}, {1, 1, 1}, {1, 30, 1}, {1, 1, 1}, {2, 9, 14}}) {
      std::vector<Continuation> batch;
      std::vector<float> expected;
      for (size_t i = 0; i < 3; ++i) {
        batch.push_back({std::span(ids).subspan(31 * i + lengths[i], lengths[i]), caches[i].get()});
        const auto logits = alone[i]->extend(batch.back().ids);
        expected.insert(expected.end(), logits.begin(), logits.end());
      }
      CHECK(relative_error(model->llama.extend(batch), expected) < 1e-10);
    }
  }
}

TEST_CASE("a copied cache goes on as the one that it was copied from, and apart from it") {
  const auto model = toy(DType::f64, 70);
  const std::vector<int32_t> ids = random_ids(90);
  for (const KvPositions positions : {KvPositions::original, KvPositions::index}) {
    const KvCachePolicy policy = policy_of({1, 8, 11}, positions);
    const auto cache = [&] { return KvCache(model->llama.ops(), model->llama.config(), policy, 70); };
    KvCache first = cache(), second = cache(), other = cache();
    const auto extend = [&](KvCache& to, size_t begin, size_t count) {
      const Continuation next{std::span(ids).subspan(begin, count), &to};
      return model->llama.extend({&next, 1});
    };
    extend(first, 0, 40);
    extend(other, 0, 40);
    second.copy_from(first);
    for (size_t i = 40; i < 50; ++i) extend(first, i + 30, 1);  // leaves the copy alone
    CHECK(extend(second, 40, 1) == extend(other, 40, 1));
    CHECK(second.length() == 41);
    KvCache larger(model->llama.ops(), model->llama.config(), policy_of({1, 8, 12}, positions), 70);
    CHECK_THROWS_AS(larger.copy_from(first), Error);
  }
}

TEST_CASE("positions by index let a text grow beyond the context; original ones do not, and say so") {
  const auto model = toy(DType::f32, 64);
  const std::vector<int32_t> ids = random_ids(3 * kContext);
  CachedSession endless(model->llama, policy_of({2, 10, 18}, KvPositions::index));
  const std::vector<float> last = feed(endless, ids, 50).back();
  for (const float x : last) CHECK(std::isfinite(x));
  CHECK(endless.length() == 3 * kContext);
  for (const KvCachePolicy& policy : {full_policy(), policy_of({2, 10, 18}, KvPositions::original)}) {
    CachedSession session(model->llama, policy);
    CHECK(session.context() == kContext);
    session.extend(std::span(ids).first(kContext - 3));
    CHECK_THROWS_WITH_AS(session.extend(std::span(ids).first(4)), doctest::Contains("--context"), Error);
    CHECK(session.length() == kContext - 3);  // nothing was added
    session.extend(std::span(ids).first(3));
  }
}

TEST_CASE("a cache's memory is its budget, and stays so") {
  const auto model = toy(DType::f32, 64);
  const LlamaConfig& config = model->llama.config();
  const std::vector<int32_t> ids = random_ids(300);
  for (const int64_t budget : {64, 128}) {
    // Key and value, position and mass; the arena's alignment fits these sizes.
    const int64_t token = 2 * config.kv_width() * 4 + config.num_kv_heads * (4 + 4);
    CachedSession session(model->llama, policy_of({0, budget / 2, budget / 2}, KvPositions::original));
    CHECK(session.cache_bytes() == config.num_layers * budget * token);
    feed(session, ids, 17);
    CHECK(session.cache_bytes() == config.num_layers * budget * token);
    CHECK(session.cache().count() == budget);
  }
}

TEST_CASE("policies by name") {
  const auto made = [](const CacheOptions& options) { return make_cache_policy(options, 1000); };
  CHECK(!made({}).evicts);
  CHECK(made({}).capacity == 1000);
  const KvCachePolicy h2o = made({.kind = "h2o", .budget = "0.201"});
  CHECK(h2o.capacity == 201);
  CHECK(h2o.keep.heavy == 101);
  CHECK(h2o.keep.recent == 100);
  CHECK(h2o.positions == KvPositions::original);
  CHECK(made({.kind = "h2o", .budget = "1"}).capacity == 1);
  CHECK(made({.kind = "h2o", .budget = "1.0"}).capacity == 1000);
  CHECK(made({.kind = "h2o", .budget = "300", .heavy_part = 0.25}).keep.heavy == 75);
  const KvCachePolicy streaming = made({.kind = "streaming", .budget = "64"});
  CHECK(streaming.keep.sinks == 4);
  CHECK(streaming.keep.recent == 60);
  CHECK(streaming.positions == KvPositions::index);
  for (const CacheOptions& wrong :
       {CacheOptions{.kind = "lru"}, CacheOptions{.kind = "h2o", .budget = "0"},
        CacheOptions{.kind = "h2o", .budget = "1.5"}, CacheOptions{.kind = "h2o", .budget = "nan"},
        CacheOptions{.kind = "h2o", .budget = "64k"}, CacheOptions{.kind = "h2o", .budget = ""},
        CacheOptions{.kind = "h2o", .budget = "1001"}, CacheOptions{.kind = "h2o", .heavy_part = 1.5},
        CacheOptions{.kind = "streaming", .budget = "4"},
        CacheOptions{.kind = "h2o", .positions = "absolute"}})
    CHECK_THROWS_WITH_AS(made(wrong), doctest::Contains("--cache"), Error);
}
