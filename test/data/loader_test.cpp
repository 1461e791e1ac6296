// Token streams, batches, and the order in which a loader hands samples out.
#include <doctest/doctest.h>

#include <atomic>
#include <map>

#include "base/random.h"
#include "data/inspect_dataset.h"
#include "data/loader.h"
#include "data/token_stream.h"
#include "test/data/fixtures.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// Sample i is the tokens [i, i + 1]; reading `broken` fails.
class Numbers : public Dataset {
 public:
  explicit Numbers(int64_t size) : size_(size) {}
  int64_t size() const override { return size_; }
  Sample read(int64_t index) const override {
    if (index == broken) fail_input("sample {} is broken", index);
    const auto id = static_cast<int32_t>(index);
    return {{id, id + 1}, {id + 1, kNotScored}, {0}};
  }
  int64_t most_documents() const override { return 1; }
  std::string describe() const override { return "numbers"; }
  std::string hash() const override { return "0"; }
  std::atomic<int64_t> broken = -1;

 private:
  int64_t size_;
};

std::vector<int64_t> next_ids(Loader& loader) {
  std::vector<int64_t> ids;
  for (const Batch& batch : loader.next())
    ids.insert(ids.end(), batch.sample_ids.begin(), batch.sample_ids.end());
  return ids;
}

std::string bytes_of(const std::vector<uint16_t>& tokens) {
  return {reinterpret_cast<const char*>(tokens.data()), 2 * tokens.size()};
}

}  // namespace

TEST_CASE("a batch is its samples back to back, a sequence a document, positions from 0") {
  const Batch batch =
      make_batch({{{1, 2, 3}, {2, kNotScored, kNotScored}, {0, 2}}, {{9}, {kNotScored}, {0}}}, {5, 6});
  CHECK(batch.ids == std::vector<int32_t>{1, 2, 3, 9});
  CHECK(batch.targets == std::vector<int32_t>{2, kNotScored, kNotScored, kNotScored});
  CHECK(batch.positions == std::vector<int32_t>{0, 1, 0, 0});
  CHECK(batch.offsets == std::vector<int64_t>{0, 2, 3, 4});
  CHECK(batch.sample_ids == std::vector<int64_t>{5, 6});
  CHECK(batch.scored_tokens == 1);
  CHECK(batch.tokens() == 4);
}

TEST_CASE("an epoch has each sample once, over all ranks, whatever the sizes; epochs differ") {
  for (const int64_t size : {1, 7, 24, 31}) {
    const Numbers numbers(size);
    std::vector<int64_t> order;  // the global one, put together from the ranks
    std::vector<std::unique_ptr<Loader>> ranks;
    for (int64_t rank = 0; rank < 3; ++rank)
      ranks.push_back(std::make_unique<Loader>(numbers, LoaderOptions{2, 2, 11, true, rank, 3, 0}));
    for (int step = 0; step < 20; ++step)
      for (const auto& loader : ranks) {
        const std::vector<int64_t> ids = next_ids(*loader);
        REQUIRE(ids.size() == 4);
        order.insert(order.end(), ids.begin(), ids.end());
        CHECK(loader->position() == 12 * (step + 1));
        CHECK(loader->epoch() == doctest::Approx(12.0 * (step + 1) / static_cast<double>(size)));
      }
    for (size_t epoch = 0; (epoch + 1) * static_cast<size_t>(size) <= order.size(); ++epoch) {
      const auto begin = order.begin() + static_cast<std::ptrdiff_t>(epoch) * size;
      std::vector<int64_t> ids(begin, begin + size);
      if (epoch == 0 && size > 7) CHECK(!std::equal(begin, begin + size, begin + size));
      std::sort(ids.begin(), ids.end());
      for (int64_t i = 0; i < size; ++i) REQUIRE(ids[static_cast<size_t>(i)] == i);
    }
  }
}

TEST_CASE("a loader started at any position hands out what the straight one does from there") {
  const Numbers numbers(13);
  std::vector<int64_t> straight;
  Loader all(numbers, {1, 1, 3, true, 0, 1, 0});
  for (int i = 0; i < 60; ++i) straight.push_back(next_ids(all)[0]);
  for (int64_t first = 0; first < 40; ++first) {
    Loader later(numbers, {2, 1, 3, true, 0, 1, first});
    for (int64_t step = 0; step < 5; ++step) {
      const std::vector<int64_t> ids = next_ids(later);
      REQUIRE(ids[0] == straight[static_cast<size_t>(first + 2 * step)]);
      REQUIRE(ids[1] == straight[static_cast<size_t>(first + 2 * step + 1)]);
      REQUIRE(later.position() == first + 2 * step + 2);
    }
  }
  Loader ordered(numbers, {13, 1, 3, false, 0, 1, 13});
  const std::vector<int64_t> ids = next_ids(ordered);
  for (int64_t i = 0; i < 13; ++i) CHECK(ids[static_cast<size_t>(i)] == i);
}

TEST_CASE("an error of the thread that reads ahead comes out of next(), at its step, and again") {
  Numbers numbers(10);
  Loader loader(numbers, {1, 1, 0, false, 0, 1, 0});
  numbers.broken = 3;
  for (int i = 0; i < 3; ++i) CHECK(next_ids(loader)[0] == i);
  for (int i = 0; i < 2; ++i)
    CHECK_THROWS_WITH_AS(loader.next(), doctest::Contains("sample 3 is broken"), Error);
  CHECK(loader.position() == 3);
  numbers.broken = -1;
  CHECK(next_ids(loader)[0] == 3);
  CHECK_THROWS_AS(Loader(Numbers(0), LoaderOptions{}), Error);
}

TEST_CASE("LongLoRA's stream: consecutive samples of context tokens, each scored on context - 1 positions") {
  const TemporaryDirectory folder;
  std::vector<uint16_t> tokens;
  for (uint16_t i = 0; i < 23; ++i) tokens.push_back(static_cast<uint16_t>(31000 + i));
  write_file(folder / "s.bin", bytes_of(tokens) + "x");  // half a token too many
  const auto dataset = open_dataset(folder / "s.bin", {5, 32000, true, "", false});
  CHECK(dataset->size() == 4);
  for (int64_t i = 0; i < 4; ++i) {
    const Sample sample = dataset->read(i);
    REQUIRE(sample.ids.size() == 5);
    for (size_t t = 0; t < 5; ++t) {
      CHECK(sample.ids[t] == 31000 + 5 * i + static_cast<int64_t>(t));
      CHECK(sample.targets[t] == (t == 4 ? kNotScored : sample.ids[t] + 1));
    }
  }
  CHECK(dataset->describe().find("last 3 tokens left out") != std::string::npos);
  CHECK(dataset->describe().find("1 bytes behind") != std::string::npos);
  CHECK_THROWS_WITH_AS(open_dataset(folder / "s.bin", {24, 0, true, "", false}),
                       doctest::Contains("fewer than one"), Error);
  CHECK_THROWS_WITH_AS(open_dataset(folder / "s.bin", {5, 128256, true, "", false}),
                       doctest::Contains("uint16"), Error);
  const auto small = open_dataset(folder / "s.bin", {5, 31004, true, "", false});
  CHECK_THROWS_WITH_AS(small->read(0), doctest::Contains("token 31004 at position 4"), Error);
}

TEST_CASE("verify: an empty stream of tokens and one that ends inside a token are broken") {
  const TemporaryDirectory folder;
  write_file(folder / "s.bin", bytes_of({7, 8}));
  CHECK(verify_dataset(folder / "s.bin").find("2 tokens") != std::string::npos);
  write_file(folder / "s.bin", bytes_of({7, 8}) + "x");
  CHECK_THROWS_WITH_AS(verify_dataset(folder / "s.bin"), doctest::Contains("ends inside a token of 2 bytes"),
                       Error);
  write_file(folder / "s.bin", "");
  CHECK_THROWS_WITH_AS(verify_dataset(folder / "s.bin"), doctest::Contains("holds no token"), Error);
}

TEST_CASE("a headerless stream of wider tokens is not read as uint16") {
  const TemporaryDirectory folder;
  const RandomStream random(1, "ids");
  const auto write = [&](uint64_t tokens, uint64_t halves, uint64_t vocab, uint64_t one_real_in = 1,
                         int64_t other = 0) {
    std::vector<uint16_t> stream;
    for (uint64_t i = 0; i < tokens; ++i) {
      const uint64_t id =
          random.below(tokens + i, one_real_in) > 0 ? static_cast<uint64_t>(other) : random.below(i, vocab);
      for (uint64_t half = 0; half < halves; ++half) stream.push_back(static_cast<uint16_t>(id >> 16 * half));
    }
    write_file(folder / "s.bin", bytes_of(stream));
  };
  for (const uint64_t vocab : {259, 32000, 128256, 262'208, 1 << 20})
    for (const uint64_t tokens : {600, 100'003})
      for (const uint64_t one_real_in : {1, 3, 12})
        for (const auto& [width, name] : {std::pair(2, "uint32"), std::pair(4, "int64")}) {
          CAPTURE(vocab);
          CAPTURE(tokens);
          CAPTURE(one_real_in);
          for (const int64_t other : {-100, 0}) {  // a label that is masked; padding
            write(tokens, width, vocab, one_real_in, other);
            CHECK_THROWS_WITH_AS(
                TokenStream(folder / "s.bin"),
                doctest::Contains(
                    fmt::format("looks like tokens of {}, but a stream without a header", name).c_str()),
                Error);
          }
        }
  for (const uint64_t one_real_in : {1, 3, 12}) {
    write(100'003, 1, 32000, one_real_in, 0);
    CHECK(TokenStream(folder / "s.bin").size() == 100'003);
  }
  CHECK(TokenStream(folder / "s.bin").size() == 100'003);
  write(20, 2, 32000);  // too short to tell
  CHECK(TokenStream(folder / "s.bin").size() == 40);
  write_file(folder / "s.bin", std::string(100'000, '\0'));  // nothing but padding
  CHECK(TokenStream(folder / "s.bin").size() == 50'000);
}

TEST_CASE("archives and indices are no streams of tokens") {
  const TemporaryDirectory folder;
  for (const auto& [bytes, name] :
       {std::pair(std::string("\x1f\x8b\x08\0\0\0\0\0\0\3", 10), "gzip: decompress"),
        {std::string("MMIDIDX\0\0\1\0\0\0\0\0\0\0", 17), "Megatron's index"}}) {
    write_file(folder / "s.bin", bytes);
    CHECK_THROWS_WITH_AS(TokenStream(folder / "s.bin"), doctest::Contains(name), Error);
  }
}

TEST_CASE("llm.c's token files are known by their magic") {
  const TemporaryDirectory folder;
  const auto file = [](std::vector<int32_t> header, const std::string& tokens) {
    header.resize(256, 0);
    return std::string(reinterpret_cast<const char*>(header.data()), 1024) + tokens;
  };
  write_file(folder / "a.bin", file({20240520, 1, 3}, bytes_of({7, 8, 9, 10})));
  const TokenStream narrow(folder / "a.bin");
  CHECK(narrow.read(0, narrow.size(), 0) == std::vector<int32_t>{7, 8, 9});
  const uint32_t wide[] = {7, 128255};
  write_file(folder / "b.bin", file({20240801, 7, 2}, {reinterpret_cast<const char*>(wide), 8}));
  CHECK(TokenStream(folder / "b.bin").read(0, 2, 128256) == std::vector<int32_t>{7, 128255});
  CHECK_THROWS_AS(TokenStream(folder / "b.bin").read(0, 2, 128255), Error);
  for (const auto& header :
       {std::vector<int32_t>{20240520, 2, 3}, {20240520, 1, 5}, {20240520, 1, -1}, {20240801, 7, 3}}) {
    write_file(folder / "c.bin", file(header, bytes_of({7, 8, 9, 10})));
    CHECK_THROWS_WITH_AS(TokenStream(folder / "c.bin"), doctest::Contains("c.bin"), Error);
  }
}
