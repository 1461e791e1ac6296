#include "kernels/timed_ops.h"

#include <doctest/doctest.h>

#include <cstring>
#include <map>

#include "kernels/operation_counts.h"
#include "test/model/toy_model.h"
#include "train/optimizer.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t kTile = 20;  // of 37 tokens: the MLP goes in two pieces

// Two steps of a two-layer model; loss, norm and parameters after them.
std::vector<double> two_steps(Llama& llama, Ops& ops, const Batch& batch, const AttentionPattern& pattern,
                              TimedOps* timed) {
  std::vector<double> numbers;
  for (int64_t step = 1; step <= 2; ++step) {
    if (timed && step == 2) timed->record();
    llama.zero_gradients();
    numbers.push_back(llama.accumulate_gradients(batch, pattern, 0.125));
    numbers.push_back(gradient_norm(ops, llama.weights()));
    update_parameters(ops, llama.weights(), {.learning_rate = 1e-3, .step = step});
  }
  if (timed) timed->stop();
  for (const Parameter& parameter : llama.weights().parameters) {
    const auto own = download_numbers<double>(ops, parameter.weight.value);
    numbers.insert(numbers.end(), own.begin(), own.end());
  }
  return numbers;
}

}  // namespace

TEST_CASE("timed ops: the rows of a step are its calls, and its numbers are the same bits") {
  const LlamaConfig config = toy_config();
  const Batch batch = toy_batch({23, 14}, config.vocab_size, 1);
  const ModelOptions options = lora_plus(config, {"q", "k", "v", "o"});
  const AttentionPattern pattern = make_pattern({}, 23, config.num_heads);
  const auto model = [&](std::unique_ptr<Ops> ops) {
    return std::make_unique<ToyModel>(std::move(ops), config, options, batch.tokens(), Recompute::cheap(),
                                      kTile);
  };
  const auto plain = model(make_cpu_ops(DType::f32));
  auto backend = std::make_unique<TimedOps>(make_cpu_ops(DType::f32));
  TimedOps& timed = *backend;
  const auto watched = model(std::move(backend));
  CHECK(timed.rows().empty());

  const auto expected = two_steps(plain->llama, *plain->ops, batch, pattern, nullptr);
  const auto numbers = two_steps(watched->llama, timed, batch, pattern, &timed);
  REQUIRE(numbers.size() == expected.size());
  CHECK(std::memcmp(numbers.data(), expected.data(), numbers.size() * sizeof(double)) == 0);

  // Two layers, the MLP in two pieces; H 48, F 56, (Hq + 2 Hkv) D = 80. Without adapters on the MLP nothing
  // of it is computed again: what is rebuilt is the norm in front of q, k, v.
  const std::map<std::string, int64_t> calls{{"zero", 2},
                                             {"upload", 4},
                                             {"embedding forward", 1},
                                             {"rmsnorm forward", 1},
                                             {"rmsnorm forward with residual", 4},
                                             {"linear forward [80, 48]", 2},
                                             {"rope forward", 2},
                                             {"attention forward", 2},
                                             {"linear forward [48, 48]", 2},
                                             {"linear forward [112, 48]", 4},
                                             {"swiglu forward", 4},
                                             {"linear forward [48, 56]", 4},
                                             {"head and cross-entropy", 1},
                                             {"rmsnorm backward", 5},
                                             {"linear backward [48, 56]", 4},
                                             {"swiglu backward", 4},
                                             {"linear backward [112, 48]", 4},
                                             {"linear backward [48, 48]", 2},
                                             {"attention backward", 2},
                                             {"rope backward", 2},
                                             {"rmsnorm rebuild", 2},
                                             {"linear backward [80, 48]", 2},
                                             {"embedding backward", 1},
                                             {"download", 1},
                                             {"sum of squares", 1},
                                             {"adamw", 1}};
  std::map<std::string, OpTime> rows;
  for (const OpTime& row : timed.rows()) {
    CAPTURE(row.name);
    CHECK(rows.emplace(row.name, row).second);
    CHECK(calls.count(row.name) == 1);
    CHECK(row.milliseconds >= 0);
    CHECK((row.operations == 0 || row.bytes == 0));
  }
  for (const auto& [name, count] : calls) {
    CAPTURE(name);
    CHECK(rows[name].calls == count);
  }
  const auto pairs = static_cast<double>(visible_pairs(pattern, 6, 23) + visible_pairs(pattern, 6, 14));
  CHECK(rows["attention backward"].operations == 2 * attention_backward_operations(pairs, 8));
  CHECK(rows["linear forward [112, 48]"].operations == 2 * 2.0 * 37 * 112 * 48);
  CHECK(rows["swiglu forward"].bytes == 2 * 37 * 3 * 56 * 4);
}
