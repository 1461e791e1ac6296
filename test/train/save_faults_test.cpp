// A run whose disk fails, and that is killed, at every system call of saving: what was saved before stays
// whole, and the same command goes on to the same bits as if nothing had happened.
#include <doctest/doctest.h>

#include <fstream>
#include <sstream>

#include "base/files.h"
#include "base/hash.h"
#include "base/random.h"
#include "test/model/toy_model.h"
#include "test/run_program.h"
#include "test/temporary.h"
#include "test/train/toy_inputs.h"
#include "train/checkpoint.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

// A run of few and small files, so that a save is few calls.
class Saving {
 public:
  Saving() : folder_(memory_folder()) {
    const fs::path toy = folder_ / "toy";
    write_toy_config(toy);
    Json config = read_json(toy / "config.json");
    config["num_hidden_layers"] = 1;
    write_text_atomically(toy / "config.json", config.dump());
    std::ofstream stream(folder_ / "data.bin", std::ios::binary);
    const RandomStream random(3, "tokens");
    for (uint64_t i = 0; i < 40 * kContext; ++i) {
      const auto token = static_cast<uint16_t>(random.below(i, kVocab));
      stream.write(reinterpret_cast<const char*>(&token), sizeof token);
    }
    stream.close();
    expect(0, run_program(command(toy, "base", "--init random --trainable full --steps 1")));
    model_ = folder_ / "base" / step_directory_name(1);
    // What is there before the save that goes wrong, and what is to come.
    expect(0, run_program(command("good", 1)));
    fs::copy(folder_ / "good", folder_ / "straight");
    fs::copy(folder_ / "good" / step_directory_name(1), folder_ / "straight" / step_directory_name(1));
    expect(0, run_program(command("straight", 2)));
    REQUIRE(newest_checkpoint(folder_ / "straight") == folder_ / "straight" / step_directory_name(2));
  }

  std::string command(const std::string& name, int steps) const {
    return command(
        model_, name,
        fmt::format("--trainable lora --lora-targets q --keep-last {} --steps {}", keep_last_, steps));
  }
  // OUT as it is after step 1.
  void begin() const {
    fs::remove_all(out());
    fs::copy(folder_ / "good", out(), fs::copy_options::recursive);
    fs::remove(folder_ / "fault");
  }
  // As if it had gone further, and the checkpoint of step 2 was damaged since.
  void begin_again() {
    begin();
    fs::copy(folder_ / "straight" / step_directory_name(2), out() / step_directory_name(2));
    write_text_atomically(out() / step_directory_name(2) / "state.json", "{}");
    keep_last_ = 2;
  }
  // The same run to step 2, with call number `at` going wrong; the exit code as a shell has it.
  int go_on(const std::string& fault, int at) {
    std::error_code ignored;
    fs::remove(folder_ / "log", ignored);
    RunningProgram program(
        command("run", 2), (folder_ / "log").string(),
        fmt::format("ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD='{}' "
                    "SINKLORA_FAULT={} SINKLORA_FAULT_AT={} SINKLORA_FAULT_FOLDER='{}' "
                    "SINKLORA_FAULT_LOG='{}'",
                    SINKLORA_FAULT_SHIM, fault, at, out().string(), (folder_ / "fault").string()));
    for (int i = 0; program.running() && i < 20000; ++i) ::usleep(1000);
    REQUIRE(!program.running());
    return program.kill() ? 128 + SIGKILL : program.exit_code(0);
  }
  bool happened() const { return fs::exists(folder_ / "fault"); }
  std::string what_happened() const { return text_of("fault") + text_of("log"); }
  std::string said() const { return text_of("log"); }
  fs::path out() const { return folder_ / "run"; }

  // At most one interval is lost: step 1 or step 2 verifies, and the former is what it was.
  void check_kept() const {
    const auto newest = newest_checkpoint(out());
    REQUIRE(newest.has_value());
    const bool is_last = *newest == out() / step_directory_name(2);
    CHECK((is_last || *newest == out() / step_directory_name(1)));
    if (!is_last) check_same(1, folder_ / "good");
  }
  // The command again, without faults, ends where a run without any ended, and nothing lies about.
  void check_goes_on() const {
    expect(0, run_program(command("run", 2)));
    check_same(2, folder_ / "straight");
    CHECK(text_of("run/latest") == step_directory_name(2) + "\n");
    CHECK(checkpoints() == keep_last_);
    check_clean();
  }
  void check_ends_like_a_straight_run(int steps) const {
    expect(0, run_program(command("run", steps)));
    expect(0, run_program(command("straight", steps)));
    check_same(steps, folder_ / "straight");
    check_clean();
  }
  int checkpoints() const {
    int count = 0;
    for (const auto& entry : fs::directory_iterator(out())) count += step_of(entry.path()) >= 0;
    return count;
  }
  // Whole lines of metrics.jsonl.
  int64_t metrics() const {
    const std::string lines = text_of("run/metrics.jsonl");
    return std::count(lines.begin(), lines.end(), '\n');
  }
  void check_clean() const {
    for (const auto& entry : fs::directory_iterator(out()))
      CHECK_MESSAGE(!entry.path().filename().string().starts_with('.'), entry.path());
  }

 private:
  static void expect(int code, const ProgramRun& run) { REQUIRE_MESSAGE(run.exit_code == code, run.output); }
  std::string command(const fs::path& model, const std::string& name, const std::string& more) const {
    return fmt::format(
        "train --model '{}' --data '{}' --out '{}' --context {} --save-every 1 --lr 1e-2 "
        "--warmup 1 --attention full {}",
        model.string(), (folder_ / "data.bin").string(), (folder_ / name).string(), kContext, more);
  }
  void check_same(int64_t step, const fs::path& truth) const {
    CAPTURE(step);
    for (const char* file : {"adapter_model.safetensors", "optimizer.safetensors", "state.json"})
      CHECK(sha256_of_file(out() / step_directory_name(step) / file) ==
            sha256_of_file(truth / step_directory_name(step) / file));
  }
  std::string text_of(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }

  const TemporaryDirectory folder_;
  fs::path model_;
  int keep_last_ = 1;
};

// Every how many trials the run is also resumed; with SINKLORA_THOROUGH set, each time.
int every(int n) { return std::getenv("SINKLORA_THOROUGH") ? 1 : n; }

}  // namespace

TEST_CASE("killed before any system call of saving, a run loses one interval at most and goes on") {
  Saving saving;
  int call = 1;
  for (;; ++call) {
    saving.begin();
    const int code = saving.go_on("kill", call);
    CAPTURE(saving.what_happened());
    saving.check_kept();
    if (!saving.happened()) {
      CHECK(code == 0);
      break;
    }
    CHECK(code == 128 + SIGKILL);
    // From where the checkpoint has its name, each of the few calls that are left.
    if (call % every(8) == 0 || fs::exists(saving.out() / step_directory_name(2))) saving.check_goes_on();
  }
  CHECK(call > 40);
  MESSAGE((call - 1) << " calls");
}

TEST_CASE("killed while it replaces a damaged checkpoint, a run has the one before or the new one") {
  Saving saving;
  int call = 1;
  for (;; ++call) {
    saving.begin_again();
    const int code = saving.go_on("kill", call);
    CAPTURE(saving.what_happened());
    saving.check_kept();
    CHECK(code == (saving.happened() ? 128 + SIGKILL : 0));
    if (!saving.happened()) break;
  }
  CHECK(call > 40);
  saving.check_goes_on();
}

TEST_CASE(
    "killed at random moments of saving, a run loses one interval at most and ends with the same bits") {
  Saving saving;
  const int kills = std::getenv("SINKLORA_THOROUGH") ? 200 : 12;
  const RandomStream random(4, "moments");
  saving.begin();
  int killed = 0;
  int64_t last = 1;
  for (int i = 0; i < kills; ++i) {
    RunningProgram program(saving.command("run", 1'000'000));
    const int64_t reached = saving.metrics();
    while (program.running() && saving.metrics() <= reached) ::usleep(200);
    ::usleep(static_cast<useconds_t>(random.below(static_cast<uint64_t>(i), 20'000)));
    killed += program.kill();
    const auto newest = newest_checkpoint(saving.out());
    REQUIRE(newest.has_value());
    const int64_t step = std::stoll(newest->filename().string().substr(5));
    // A step's line is written before its checkpoint.
    CHECK(step >= saving.metrics() - 1);
    CHECK(step >= last);
    last = step;
  }
  CHECK(killed == kills);
  saving.check_ends_like_a_straight_run(static_cast<int>(last) + 1);
}

TEST_CASE("a disk that is full or fails at any call of saving: a clear message, and nothing old is damaged") {
  Saving saving;
  for (const std::string fault : {"enospc", "eio"}) {
    bool metrics_flushed = false;
    int call = 1;
    for (;; ++call) {
      saving.begin();
      const int code = saving.go_on(fault, call);
      CAPTURE(saving.what_happened());
      if (!saving.happened()) {
        CHECK(code == 0);
        break;
      }
      CHECK(code == 3);
      const std::string said = saving.said();
      CHECK(said.find(fault == "eio" ? "Input/output error" : "No space left on device") !=
            std::string::npos);
      CHECK(said.find("sinklora: " + saving.out().string()) != std::string::npos);
      metrics_flushed |= said.find("metrics.jsonl: cannot flush to disk") != std::string::npos;
      saving.check_kept();
      saving.check_clean();
      if (call % every(8) == 0) saving.check_goes_on();
    }
    CHECK(metrics_flushed);
    CHECK(call > 20);
    MESSAGE(fault << ": " << (call - 1) << " calls");
  }
}

TEST_CASE("writes that take a part of their bytes are gone on with") {
  Saving saving;
  int call = 1;
  for (;; ++call) {
    saving.begin();
    const int code = saving.go_on("short", call);
    CAPTURE(saving.what_happened());
    CHECK(code == 0);
    saving.check_kept();
    if (!saving.happened()) break;
    if (call % every(8) == 0) saving.check_goes_on();
  }
  CHECK(call > 8);
}
