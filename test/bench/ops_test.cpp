#include "bench/ops.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "kernels/attention_pattern.h"
#include "test/run_program.h"

using namespace sinklora;
using sinklora::test::run_program;

TEST_CASE("bench attention: every field, forward and backward of each pattern, FLOPs of visible pairs") {
  AttentionBench bench;
  bench.contexts = {37, 50};
  bench.batch = 2, bench.heads = 6, bench.kv_heads = 2, bench.head_dim = 8;
  bench.attention.sinks = 3;
  bench.device = "cpu", bench.precision = "fp32";
  bench.warmup = 0, bench.repeat = 1;
  const Json rows = bench_attention(bench);
  REQUIRE(rows.size() == bench.contexts.size() * bench.patterns.size() * 2);
  size_t next = 0;
  for (const int64_t context : bench.contexts)
    for (const std::string& kind : bench.patterns)
      for (const bool forward : {true, false}) {
        const Json& row = rows.at(next++);
        CHECK(row.at("pattern") == kind);
        CHECK(row.at("direction") == (forward ? "forward" : "backward"));
        CHECK(row.at("context") == context);
        CHECK(row.at("batch") == 2);
        CHECK(row.at("heads") == 6);
        CHECK(row.at("kv_heads") == 2);
        CHECK(row.at("head_dim") == 8);
        CHECK(row.at("device") == "cpu");
        AttentionOptions options = bench.attention;
        options.kind = kind;
        const AttentionPattern pattern = make_pattern(options, context, 6);
        int64_t pairs = 0;
        for (int64_t head = 0; head < 6; ++head)
          for (int64_t i = 0; i < context; ++i)
            for (int64_t j = 0; j < context; ++j) pairs += visible(pattern, head, i, j, context);
        const double operations = 2.0 * (forward ? 4 : 10) * 8 * static_cast<double>(pairs);
        CHECK(row.at("tflops").get<double>() * row.at("ms").get<double>() * 1e9 ==
              doctest::Approx(operations).epsilon(1e-12));
      }
  bench.kv_heads = 4;
  CHECK_THROWS_AS(bench_attention(bench), Error);
}

TEST_CASE("bench gemm: every linear of the shape, forward and backward, without and with adapters") {
  GemmBench bench;
  bench.shape = "smollm2-135m";
  bench.context = 5;
  bench.device = "cpu", bench.precision = "bf16";
  bench.warmup = 0, bench.repeat = 1;
  const Json rows = bench_gemm(bench);
  REQUIRE(rows.size() == 4 * 2 * 2 + 2);
  for (const Json& row : rows)
    for (const char* key : {"shape", "linear", "direction", "lora_rank", "tokens", "in", "out", "precision",
                            "ms", "tflops", "device"}) {
      CAPTURE(key);
      CHECK(row.contains(key));
    }
  const auto operations = [&](size_t row) {
    return rows.at(row).at("tflops").get<double>() * rows.at(row).at("ms").get<double>() * 1e9;
  };
  // q, k, v of SmolLM2: 576 outputs and twice 192, from 576.
  CHECK(operations(0) == doctest::Approx(2.0 * 5 * 576 * 960).epsilon(1e-12));
  CHECK(operations(2) == doctest::Approx(2.0 * 5 * (576 * 960 + 24 * 576 + 8 * 960)).epsilon(1e-12));
  CHECK(operations(17) == doctest::Approx(4.0 * 5 * 576 * 49152).epsilon(1e-12));
  bench.shape = "llama9";
  CHECK_THROWS_AS(bench_gemm(bench), Error);
}

TEST_CASE("bench: lists on the command line, JSON on standard output, wrong values by name") {
  const auto run = run_program(
      "bench attention --context 16,33 --patterns full,sf --heads 4 --kv-heads 2 --head-dim 8 --repeat 1 "
      "--device cpu --json -");
  REQUIRE(run.exit_code == 0);
  CHECK(parse_json(run.output, "bench attention").size() == 8);
  for (const std::string wrong : {"--context 16,x", "--context 0", "--patterns full,round", "--heads -1"}) {
    CAPTURE(wrong);
    const auto refused = run_program("bench attention --device cpu " + wrong);
    CHECK(refused.exit_code == 2);
    CHECK(refused.output.find(wrong.substr(0, wrong.find(' '))) != std::string::npos);
  }
}
