#include "train/metrics.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/files.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::TemporaryDirectory;

TEST_CASE("metrics survive a torn last line and drop what comes after the resumed step") {
  const TemporaryDirectory folder;
  {
    MetricsLog log(folder.path(), 0);
    for (int64_t step = 1; step <= 5; ++step)
      log.write({.step = step, .loss = 1.0 / static_cast<double>(step)});
  }
  std::ofstream(folder / "metrics.jsonl", std::ios::app) << "{\"step\": 6, \"lo";
  {
    MetricsLog log(folder.path(), 3);
    CHECK(log.losses().size() == 3);
    log.write({.step = 4, .loss = 0.5});
  }
  MetricsLog log(folder.path(), 100);
  REQUIRE(log.losses().size() == 4);
  CHECK(log.losses().back().second == 0.5);
}

TEST_CASE("lines that are no records of steps are left out, and keep no run from going on") {
  const TemporaryDirectory folder;
  const auto write = [&](const std::string& text) { write_text_atomically(folder / "metrics.jsonl", text); };
  const std::string first = "{\"step\": 1, \"loss\": 2.5}\n", third = "{\"step\": 3, \"loss\": 1.5}\n";
  for (const std::string bad :
       {"[]", "null", "5", "", "{", "{}", "{\"step\":\"x\"}", "{\"step\":1e300,\"loss\":1}",
        "{\"step\":2,\"loss\":null}", "{\"step\":2}", "{\"step\":2,\"loss\":1,\"skipped\":3}", "\xff"}) {
    CAPTURE(bad);
    write(first + bad + "\n" + third);
    const MetricsLog log(folder.path(), 3);
    CHECK(log.losses() == std::vector<std::pair<double, double> >{{1, 2.5}, {3, 1.5}});
    CHECK(log.last_step() == 3);
    CHECK(read_text(folder / "metrics.jsonl", 1000) == first + third);
  }
  write(first + std::string(4096, '\0') + "\n");
  CHECK(MetricsLog(folder.path(), 3).last_step() == 1);
}

TEST_CASE("metrics that cannot be read are not replaced") {
  namespace fs = std::filesystem;
  const TemporaryDirectory folder;
  const fs::path path = folder / "metrics.jsonl";
  fs::create_symlink("metrics.jsonl", path);  // leads nowhere but to itself
  CHECK_THROWS_WITH_AS(MetricsLog(folder.path(), 3), doctest::Contains("metrics.jsonl: cannot be read"),
                       Error);
  CHECK(fs::is_symlink(path));
  fs::remove(path);
  fs::create_directory(path);
  CHECK_THROWS_WITH_AS(MetricsLog(folder.path(), 3), doctest::Contains("metrics.jsonl: cannot be read"),
                       Error);
  CHECK(fs::is_directory(path));
}
