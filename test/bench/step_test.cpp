#include <doctest/doctest.h>

#include "base/error.h"
#include "base/files.h"
#include "bench/decode.h"
#include "bench/step.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

Json bench_alone(const StepBench& bench) {
  Json result;
  work_alone({bench.device, bench.precision}, [&](const RankPlace& place) {
    result = bench_step(bench, place);
    return ExitCode::ok;
  });
  return result;
}

}  // namespace

TEST_CASE("bench step reports a step of every field that scripts rely on") {
  StepBench bench;
  bench.shape = "smollm2-135m";
  bench.context = 16;
  bench.device = "cpu";
  bench.precision = "bf16";
  bench.trainable = "lora";
  bench.warmup = 0;
  bench.steps = 1;
  bench.profile = true;
  const Json result = bench_alone(bench);
  for (const char* key : {"shape", "context", "attention", "recompute", "gpus", "tokens_per_s", "step_ms",
                          "peak_mem_gib", "mfu", "device"})
    CHECK(result.contains(key));
  CHECK(result.at("tokens_per_s").get<double>() ==
        doctest::Approx(16e3 / result.at("step_ms").get<double>()));
  const Json& profile = result.at("profile");
  double sum = 0, share = 0;
  for (const Json& row : profile.at("ops")) {
    CHECK((row.at("calls") > 0 && row.contains("tflops") && row.contains("gb_per_s")));
    sum += row.at("ms").get<double>();
    share += row.at("share").get<double>();
  }
  CHECK(share == doctest::Approx(1));
  CHECK(profile.at("sum_ms").get<double>() == doctest::Approx(sum));
  CHECK(profile.at("step_ms") >= profile.at("sum_ms"));
  bench.shape = "llama9";
  CHECK_THROWS_AS(bench_alone(bench), Error);
}

TEST_CASE("bench step on two ranks counts the tokens of both, and takes as long as the slower one") {
  const TemporaryDirectory folder;
  const ProgramRun run = run_program(
      "bench step --shape smollm2-135m --context 16 --device cpu --precision bf16 --trainable lora --warmup "
      "0 "
      "--steps 1 --gpus 2 --json '" +
      (folder / "bench.json").string() + "'");
  REQUIRE_MESSAGE(run.exit_code == 0, run.output);
  const Json result = read_json(folder / "bench.json");
  CHECK(result.at("ranks") == 2);
  CHECK(result.at("gpus") == 0);
  CHECK(result.at("tokens_per_s").get<double>() ==
        doctest::Approx(2 * 16e3 / result.at("step_ms").get<double>()));
}

TEST_CASE("bench decode says what it measured, for every cache, and forks the prompt") {
  for (const std::string kind : {"full", "h2o", "streaming"}) {
    DecodeBench bench;
    bench.shape = "smollm2-135m", bench.prompt = 24, bench.chunk = 16, bench.batch = 2, bench.warmup = 1,
    bench.steps = 2;
    bench.cache.kind = kind, bench.cache.budget = "10";
    bench.device = "cpu", bench.precision = "fp32", bench.profile = true;
    const Json result = bench_decode(bench);
    CAPTURE(result.dump());
    for (const char* const key : {"shape", "cache", "budget", "prompt", "batch", "tokens_per_s", "kv_bytes",
                                  "peak_mem_gib", "device", "step_ms", "prefill_ms"})
      CHECK(result.contains(key));
    const int64_t slots = kind == "full" ? 24 + 1 + 2 + 1 + 1 : 10, layers = 30, kv_width = 192;
    CHECK(result.at("budget") == slots);
    const auto bytes = result.at("kv_bytes").get<int64_t>();
    CHECK(bytes >= 2 * layers * 2 * slots * kv_width * 4);
    CHECK(bytes <= 1.2 * 2 * layers * 2 * slots * kv_width * 4);
    bool decoded = false;
    for (const Json& row : result.at("profile").at("ops"))
      decoded = decoded || (row.at("op") == "decode attention" && row.at("calls") == layers);
    CHECK(decoded);
  }
}
