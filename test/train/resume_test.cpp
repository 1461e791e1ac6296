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

// With the fault shim between the program and OUT.
ProgramRun run_faulty(const Runs& runs, const std::string& fault, const std::string& command) {
  RunningProgram run(command, runs.path("log"),
                     fmt::format("ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD='{}' SINKLORA_FAULT={} "
                                 "SINKLORA_FAULT_FOLDER='{}'",
                                 SINKLORA_FAULT_SHIM, fault, runs.out().string()));
  const int code = run.exit_code(30);
  return {code, read_text(runs.path("log"), 1 << 20)};
}

}  // namespace

TEST_CASE(
    "a run that began with another's checkpoint goes on by the same command; other runs are kept apart") {
  const Runs runs;
  const auto in = [&](const std::string& out, const std::string& more) {
    return run_program(runs.command(more + " --save-every 1 --keep-last 0", out));
  };
  const auto named = [&](const fs::path& checkpoint) {
    return fmt::format(" --resume '{}'", checkpoint.string());
  };
  expect(0, in("first", "--steps 4"));
  const fs::path second = runs.out("first") / step_directory_name(2);
  expect(0, in("run", "--steps 4" + named(second)), "at step 2");
  expect(0, in("run", "--steps 6" + named(second)), "at step 4");
  expect(0, in("run", "--steps 7"), "at step 6");
  CHECK(runs.steps("run") == 5);
  // One more that is its own, and one of another run.
  fs::rename(runs.out("run") / step_directory_name(7), runs.path("aside"));
  expect(2, in("run", "--steps 7" + named(runs.out("run") / step_directory_name(3))), "--resume auto");
  expect(2, in("run", "--steps 7" + named(runs.out("first") / step_directory_name(4))),
         "did not begin with it");
  CHECK(newest_checkpoint(runs.out("run")) == runs.out("run") / step_directory_name(6));
  CHECK(runs.steps("run") == 5);
  // Killed before its first save.
  fs::create_directory(runs.out("killed"));
  fs::copy(runs.out("run") / "resumed_from", runs.out("killed") / "resumed_from");
  std::ofstream(runs.out("killed") / "metrics.jsonl") << "{\"step\":3,\"loss\":1}\n";
  expect(0, in("killed", "--steps 3" + named(second)), "at step 2");
  // The same, but then it is not named: no step is made, until it is told to begin anew.
  fs::create_directory(runs.out("anew"));
  fs::copy(runs.out("run") / "resumed_from", runs.out("anew") / "resumed_from");
  expect(2, in("anew", "--steps 3"), "name it again (--resume DIR");
  CHECK(!fs::exists(runs.out("anew") / "metrics.jsonl"));
  expect(0, in("anew", "--steps 3 --resume never"));
  expect(2, in("anew", "--steps 4" + named(second)), "did not begin with it");
  fs::remove(runs.out("run") / "resumed_from");
  expect(2, in("run", "--steps 7" + named(second)), "did not begin with it");
}

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

TEST_CASE("a run that is stopped says how to go on, where the same command would not") {
  const Runs runs;
  RunningProgram run(runs.command("--steps 1000000 --resume never"), runs.path("log"));
  REQUIRE(eventually(20, [&] { return runs.steps() > 2; }));
  ::kill(run.id(), SIGTERM);
  CHECK(run.exit_code(30) == 75);
  check_contains(read_text(runs.path("log"), 1 << 26), "run the same command with --resume auto to go on");
}

TEST_CASE("save-now that cannot be removed is said once, and ends nothing") {
  const Runs runs;
  fs::create_directories(runs.out() / "save-now/full");
  const ProgramRun run = run_program(runs.command("--steps 3"));
  expect(0, run, "save-now: cannot be removed");
  CHECK(run.output.find("cannot be removed") == run.output.rfind("cannot be removed"));
}

TEST_CASE("an --out too long for the names below it is refused before anything is made") {
  const Runs runs;
  std::string out = "long";
  while (runs.path(out).size() < 4020)
    out.append(1, '/').append(std::min<size_t>(200, 4040 - runs.path(out).size()), 'x');
  expect(2, run_program(runs.command("--steps 1", out)), "a path of");
  CHECK(!fs::exists(runs.path("long")));
}

TEST_CASE("names and settings that are no UTF-8 keep no run from its records") {
  const Runs runs;
  const std::string name = "m\xff";
  fs::rename(runs.path("model"), runs.path(name));
  fs::create_directory_symlink(runs.path(name), runs.path("model"));
  RunningProgram run(runs.command("--steps 2 --gpus 2"), runs.path("log"), "NCCL_X=\xff");
  CHECK_MESSAGE(run.exit_code(30) == 0, read_text(runs.path("log"), 1 << 20));
  CHECK(read_json(runs.out() / "env.json").at("settings").at("NCCL_X") == "\xef\xbf\xbd");
  expect(0, run_program(runs.command("--steps 3 --gpus 2")), "at step 2");
  const fs::path base = runs.path(name + "-base");
  fs::rename(runs.out(), base);
  const ProgramRun lora = run_program(
      fmt::format("train --model '{}' --trainable lora --data '{}' --out '{}' --context {} --steps 1",
                  base.string(), runs.path("data.bin"), runs.path("lora"), kContext));
  expect(0, lora);
}

TEST_CASE("a file system that locks no folders: a file is locked; one that locks nothing: a warning") {
  const Runs runs;
  fs::create_directory(runs.out());
  {
    const Descriptor first(::open((runs.out() / kLockName).c_str(), O_RDWR | O_CREAT, 0600));
    REQUIRE(::flock(first.get(), LOCK_EX) == 0);
    expect(2, run_faulty(runs, "nfs", runs.command("--steps 1")), "another run is writing there");
  }
  const ProgramRun alone = run_faulty(runs, "nfs", runs.command("--steps 1"));
  expect(0, alone);
  CHECK(alone.output.find("warning") == std::string::npos);
  expect(0, run_faulty(runs, "nolocks", runs.command("--steps 2")), "its file system has no locks");
  fs::remove_all(runs.out());
  std::ofstream(runs.path("text.jsonl")) << "{\"text\": \"some words\"}\n";
  const std::string tokenize = fmt::format("tokenize --tokenizer byte --context 64 --input '{}' --out '{}'",
                                           runs.path("text.jsonl"), runs.out().string());
  expect(0, run_faulty(runs, "nfs", tokenize));
  CHECK(fs::exists(runs.out() / kLockName));
}

TEST_CASE("a file system that does not tell its free space is not taken for a full one") {
  const Runs runs;
  expect(0, run_faulty(runs, "noblocks", runs.command("--steps 1")));
  CHECK(read_json(runs.out() / "env.json").at("free_disk_bytes").is_null());
  expect(0, run_faulty(runs, "noblocks", "env"), "not known");
}
