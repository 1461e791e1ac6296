#include "train/utilization.h"

#include <doctest/doctest.h>

#include <vector>

using namespace sinklora;

TEST_CASE("operations of a model are those of its linears and of the pairs that are seen") {
  LlamaConfig config;
  config.vocab_size = 100, config.hidden_size = 8, config.intermediate_size = 20, config.num_layers = 3;
  config.num_heads = 2, config.num_kv_heads = 1, config.head_dim = 4;
  const double weights = 3 * (8 * (8 + 4 + 4) + 8 * 8 + 3 * 8 * 20) + 100 * 8;
  const double pairs = 2 * (5 * 6 / 2 + 2 * 3 / 2);  // two sequences, of 5 and 2 tokens; two heads
  const std::vector<int64_t> offsets{0, 5, 7};
  CHECK(model_operations(config, {}, offsets, false) == 4 * weights * 7 + 14 * 4 * 3 * pairs);
  CHECK(model_operations(config, {}, offsets, true) == 6 * weights * 7 + 14 * 4 * 3 * pairs);
}

TEST_CASE("the peak of a GPU goes by its name, and is not guessed") {
  CHECK(dense_bf16_peak("NVIDIA H100 80GB HBM3, 79.2 GiB, compute capability 9.0") == 989.4e12);
  CHECK(dense_bf16_peak("NVIDIA H200") == 989.4e12);
  CHECK(dense_bf16_peak("NVIDIA H100 PCIe") == 756e12);
  CHECK(!dense_bf16_peak("NVIDIA GeForce RTX 4090"));
  CHECK(!peak_operations("cpu", "fp32", 0));
}
