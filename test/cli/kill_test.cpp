// `sinklora train` killed with SIGKILL inside accumulation windows, as a batch system or the kernel would.
#include <doctest/doctest.h>

#include <chrono>
#include <fstream>
#include <set>
#include <thread>

#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/random.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

// The whole lines of metrics.jsonl, without what depends on the clock.
std::vector<std::string> timeless_metrics(const fs::path& run) {
  std::vector<std::string> lines;
  std::ifstream file(run / "metrics.jsonl");
  for (std::string line; std::getline(file, line) && !file.eof();) {
    Json json = parse_json(line, "metrics");
    for (const char* key : {"tokens_per_s", "step_ms", "mem_gib"}) json.erase(key);
    lines.push_back(json.dump());
  }
  return lines;
}

}  // namespace

TEST_CASE("a run killed inside accumulation windows and resumed equals a straight one bit for bit") {
  const TemporaryDirectory folder(memory_folder());
  const auto path = [&](const std::string& name) { return " '" + (folder / name).string() + "'"; };
  const std::string model = " '" SINKLORA_SOURCE_DIR "/assets/tiny-llama'";
  REQUIRE(run_program("corpus --seed 5 --bytes 12k --out" + path("text.jsonl")).exit_code == 0);
  REQUIRE(run_program("tokenize --format text --context 128 --tokenizer" + model + " --input" +
                      path("text.jsonl") + " --out" + path("data"))
              .exit_code == 0);
  constexpr size_t kSteps = 36;  // of four windows of 128 tokens; more than one epoch
  const std::string train = "train --context 128 --batch 1 --accumulate 4 --lr 1e-3 --warmup 2 --steps " +
                            std::to_string(kSteps) + " --save-every 5 --keep-last 0 --model" + model +
                            " --data" + path("data") + " --out";
  REQUIRE(run_program(train + path("straight")).exit_code == 0);
  const std::vector<std::string> straight = timeless_metrics(folder / "straight");
  REQUIRE(straight.size() == kSteps);
  std::ifstream file(folder / "straight" / "metrics.jsonl");
  std::string line;
  REQUIRE(std::getline(file, line));
  const double step_ms = parse_json(line, "metrics").at("step_ms").get<double>();

  // Each time, wait for the metrics of a step, then for a part of a step's time: the next one is under way.
  const RandomStream random(1, "moments to kill at");
  int killed = 0;
  for (const size_t step : {2, 8, 13, 19, 26}) {  // before the first checkpoint, then 3, 3, 4 and 1 after one
    RunningProgram run(train + path("killed"));
    const auto metrics = [&] { return timeless_metrics(folder / "killed"); };
    while (run.running() && metrics().size() < step)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(step_ms * random.uniform(step)));
    killed += run.kill();
    const std::vector<std::string> so_far = metrics();
    REQUIRE(so_far.size() <= kSteps);
    CHECK(std::equal(so_far.begin(), so_far.end(), straight.begin()));
  }
  CHECK(killed >= 3);  // all five, unless this test itself does not get a core for ten steps
  const ProgramRun rest = run_program(train + path("killed"));
  CHECK(rest.exit_code == 0);
  CHECK(rest.output.find("resuming") != std::string::npos);
  CHECK(timeless_metrics(folder / "killed") == straight);
  const std::set<std::string> of_the_run{"metrics.jsonl", "run.toml", "train.log", "env.json"};
  size_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder / "straight")) {
    const fs::path name = fs::relative(entry.path(), folder / "straight");
    if (!entry.is_regular_file() || of_the_run.contains(name.string())) continue;
    CAPTURE(name);
    CHECK(sha256_of_file(entry.path()) == sha256_of_file(folder / "killed" / name));
    ++files;
  }
  CHECK(files > 8 * 5);
}
