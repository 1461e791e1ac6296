#include "train/metrics.h"

#include <doctest/doctest.h>

#include <fstream>

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
