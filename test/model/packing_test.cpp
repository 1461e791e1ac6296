// Instruction records packed into rows lose nothing and see nothing of one another, whatever the pattern.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "data/tokenize.h"
#include "test/data/fixtures.h"
#include "test/model/toy_model.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t kContext = 64;  // groups of 16: longer records cross borders of groups

Batch tokenized_batch(const Tokenizer& tokenizer, const TemporaryDirectory& folder, Packing packing) {
  const TokenizeOptions options{{folder / "records.json"},
                                folder / (packing == Packing::whole ? "packed" : "separate"),
                                {"alpaca", "none", false, false, kContext},
                                packing,
                                7,
                                1,
                                false};
  tokenize_files(tokenizer, options);
  const auto dataset = open_dataset(options.out, {});
  std::vector<Sample> samples;
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < dataset->size(); ++i) samples.push_back(dataset->read(i)), ids.push_back(i);
  return make_batch(samples, ids);
}

}  // namespace

TEST_CASE("packed instruction records give the losses of separate ones, all patterns") {
  const TemporaryDirectory folder(memory_folder());
  const auto tokenizer = open_tokenizer("byte");
  Json records = Json::array();
  for (const int size : {3, 20, 9, 1, 45, 30, 12, 2, 26, 7, 38, 5})
    records.push_back(
        {{"instruction", std::string(static_cast<size_t>(size), static_cast<char>('a' + size % 26))},
         {"output", "answer " + std::to_string(size)}});
  write_file(folder / "records.json", records.dump());
  const Batch packed = tokenized_batch(*tokenizer, folder, Packing::whole),
              separate = tokenized_batch(*tokenizer, folder, Packing::none);
  CHECK(packed.sample_ids.size() < separate.sample_ids.size());  // rows hold several records
  CHECK(separate.sample_ids.size() == records.size());
  REQUIRE(packed.ids == separate.ids);
  REQUIRE(packed.targets == separate.targets);
  REQUIRE(packed.scored_tokens == separate.scored_tokens);

  LlamaConfig config = toy_config();
  config.vocab_size = tokenizer->vocab_size;
  ToyModel model(DType::f64, config, lora_plus(config, {"q", "k", "v", "o"}), packed.tokens(),
                 Recompute::none());
  for (const AttentionOptions& attention : all_patterns()) {
    CAPTURE(attention.kind);
    const AttentionPattern pattern = make_pattern(attention, kContext, config.num_heads);
    const std::vector<double> together = model.llama.nll(packed, pattern);
    double apart = 0;
    // Each record by itself: nothing of another can be seen.
    for (size_t s = 0; s + 1 < separate.offsets.size(); ++s) {
      const auto cut = [&](const std::vector<int32_t>& from) {
        return std::vector<int32_t>(from.begin() + separate.offsets[s],
                                    from.begin() + separate.offsets[s + 1]);
      };
      for (const double x :
           model.llama.nll(make_batch({{cut(separate.ids), cut(separate.targets), {0}}}, {0}), pattern))
        apart += x;
    }
    double sum = 0;
    for (const double x : together) sum += x;
    CHECK(std::isfinite(sum));
    CHECK(sum == doctest::Approx(apart).epsilon(1e-12));
  }
  // Joined on purpose (--join-documents), they do see each other: the comparison above can fail.
  Sample joined{packed.ids, packed.targets, {0}};
  joined.ids.resize(kContext), joined.targets.resize(kContext);
  Sample apart = joined;
  apart.document_starts.clear();
  for (const int64_t offset : packed.offsets)
    if (offset < kContext) apart.document_starts.push_back(offset);
  REQUIRE(apart.document_starts.size() > 2);
  const AttentionPattern full = make_pattern({.kind = "full"}, kContext, config.num_heads);
  const auto a = model.llama.nll(make_batch({joined}, {0}), full),
             b = model.llama.nll(make_batch({apart}, {0}), full);
  CHECK(std::fabs(a.back() - b.back()) +
            std::fabs(*std::max_element(a.begin(), a.end()) - *std::max_element(b.begin(), b.end())) >
        1e-3);
}
