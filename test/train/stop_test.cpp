// How a run ends that somebody ends: signals, also during an evaluation, and a console that has gone.
#include <doctest/doctest.h>

#include "base/files.h"
#include "base/json.h"
#include "test/comm/processes.h"
#include "test/run_program.h"
#include "test/train/runs.h"
#include "train/checkpoint.h"

using namespace sinklora;
using namespace sinklora::test;

TEST_CASE("a run whose terminal is closed saves and ends with 75; under nohup it goes on") {
  for (const bool ignored : {false, true}) {
    const Runs runs;
    const std::string variables = ignored ? "nohup" : "";
    RunningProgram run(runs.command("--steps 1000000 --save-every 0"), "/dev/null", variables);
    REQUIRE(eventually(20, [&] { return runs.steps() > 2; }));
    ::kill(run.id(), SIGHUP);
    if (ignored) {
      const int64_t before = runs.steps();
      CHECK(eventually(20, [&] { return runs.steps() > before + 5; }));
      ::kill(run.id(), SIGTERM);
    }
    CHECK(run.exit_code(30) == 75);
    CHECK(newest_checkpoint(runs.out()) == runs.out() / step_directory_name(runs.steps()));
  }
}

TEST_CASE("more signals do not keep a run from saving; Ctrl-C once more ends it at once") {
  const Runs runs;
  for (const auto& [first, second] : {std::pair{SIGHUP, SIGHUP}, {SIGUSR1, SIGTERM}, {SIGINT, SIGINT}}) {
    CAPTURE(second);
    RunningProgram run(runs.command("--steps 1000000 --save-every 0"));
    const int64_t before = runs.steps();
    REQUIRE(eventually(20, [&] { return runs.steps() > before + 2; }));
    ::kill(run.id(), first);
    ::usleep(1000);
    ::kill(run.id(), second);
    CHECK(run.exit_code(30) == 75);
    CHECK(newest_checkpoint(runs.out()) == runs.out() / step_directory_name(runs.steps()));
  }
  std::filesystem::remove_all(runs.out());
  RunningProgram slow(runs.command("--steps 1000000 --batch 64 --accumulate 20000"));
  REQUIRE(eventually(20, [&] { return std::filesystem::exists(runs.out() / "metrics.jsonl"); }));
  ::kill(slow.id(), SIGINT);
  ::usleep(1'100'000);
  REQUIRE(slow.running());
  ::kill(slow.id(), SIGINT);
  CHECK(slow.exit_code(1) == 128 + SIGINT);
  CHECK(runs.steps() == 0);
}

TEST_CASE("a run whose console nobody reads any more goes on to its end") {
  const Runs runs;
  // The pipe's reader leaves after the first bytes.
  const ProgramRun left = run_program(runs.command("--steps 400 --log-every 1") + " | head -c 1; true");
  CHECK(left.exit_code == 0);
  CHECK(eventually(20, [&] { return newest_checkpoint(runs.out()).has_value(); }));
  CHECK(runs.steps() == 400);
}

TEST_CASE("a signal ends an evaluation, whose step is saved before; the next run makes it good") {
  const Runs runs;
  runs.write_stream("long.bin", 200'000 * kContext);  // longer than this test may take
  const auto evaluating = [&](const std::string& more) {
    return runs.command(
        fmt::format("--save-every 2 --eval-every 2 --eval-data '{}' {}", runs.path("long.bin"), more));
  };
  for (const char* const steps : {"1000000", "2"}) {  // in mid-run, and after the last step
    CAPTURE(steps);
    std::filesystem::remove_all(runs.out());
    RunningProgram run(evaluating(fmt::format("--steps {}", steps)), runs.path("log"));
    const auto saved = runs.out() / step_directory_name(2);
    REQUIRE(eventually(20, [&] { return std::filesystem::exists(runs.out() / "latest"); }));
    ::usleep(300'000);
    ::kill(run.id(), SIGTERM);
    CHECK(run.exit_code(5) == 75);
    CHECK(read_text(runs.path("log"), 1 << 20).find("stopped while evaluating step 2") != std::string::npos);
    CHECK(newest_checkpoint(runs.out()) == saved);
    CHECK(!std::filesystem::exists(runs.out() / "eval.jsonl"));
  }
  const ProgramRun rest = run_program(runs.command(
      fmt::format("--save-every 2 --eval-every 2 --steps 3 --eval-data '{}'", runs.path("data.bin"))));
  CHECK_MESSAGE(rest.exit_code == 0, rest.output);
  const std::string lines = read_text(runs.out() / "eval.jsonl", 1 << 20);
  CHECK(parse_json(lines.substr(0, lines.find('\n')), "eval").at("step") == 2);
  CHECK(parse_json(lines.substr(lines.find('\n') + 1), "eval").at("step") == 3);
}

TEST_CASE("eval ppl of a model whose numbers are none writes its record and ends with 5") {
  const Runs runs;
  REQUIRE(run_program(runs.command("--steps 1")).exit_code == 0);
  const auto model = runs.out() / step_directory_name(1);
  poison(model);
  std::filesystem::remove(model / "SHA256SUMS");
  const ProgramRun run =
      run_program(fmt::format("eval ppl --model '{}' --data '{}' --context {} --json '{}'", model.string(),
                              runs.path("data.bin"), kContext, runs.path("record.json")));
  CHECK_MESSAGE(run.exit_code == 5, run.output);
  CHECK(read_json(runs.path("record.json")).at("nll").is_null());
}

TEST_CASE("--resume takes a run for its newest checkpoint, and says what is none") {
  const Runs runs;
  REQUIRE(run_program(runs.command("--steps 2")).exit_code == 0);
  const ProgramRun further = run_program(runs.command("--steps 3 --resume '" + runs.out().string() + "'"));
  CHECK_MESSAGE(further.output.find("at step 2") != std::string::npos, further.output);
  CHECK(runs.steps() == 3);
  const ProgramRun nowhere = run_program(runs.command("--steps 4 --resume " + runs.path("nowhere")));
  CHECK(nowhere.exit_code == 2);
  CHECK_MESSAGE(nowhere.output.find("no checkpoint") != std::string::npos, nowhere.output);
}
