// What a run does with what it finds in --out and at --resume, and on file systems that lack something.
#include <doctest/doctest.h>

#include <sys/file.h>

#include "base/files.h"
#include "base/json.h"
#include "test/comm/processes.h"
#include "test/model/files.h"
#include "test/run_program.h"
#include "test/train/runs.h"
#include "train/checkpoint.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

void expect(int code, const ProgramRun& run, const std::string& words = "") {
  CHECK_MESSAGE(run.exit_code == code, run.output);
  check_contains(run.output, words);
}

}  // namespace

TEST_CASE("--resume never takes no folder that holds checkpoints") {
  const Runs runs;
  expect(0, run_program(runs.command("--steps 2")));
  fs::remove(runs.out() / "metrics.jsonl");
  expect(2, run_program(runs.command("--steps 3 --resume never")), "holds a run already");
}

TEST_CASE("a folder that is called auto is none to resume from") {
  const Runs runs;
  expect(0, run_program(runs.command("--steps 2")));
  fs::create_directory(runs.path("auto"));
  std::ofstream(runs.path("auto/latest")) << "step-00000009\n";
  const std::string script = fmt::format("cd '{}' && exec '{}' {} >log 2>&1", runs.path("."),
                                         SINKLORA_PROGRAM, runs.command("--steps 3 --resume auto"));
  CHECK(std::system(script.c_str()) == 0);
  check_contains(read_text(runs.path("log"), 1 << 20), "at step 2");
}
