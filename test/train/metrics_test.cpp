#include <doctest/doctest.h>

#include <fstream>

#include "base/files.h"
#include "test/temporary.h"
#include "train/metrics.h"

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

TEST_CASE("a plot is a whole SVG with all points") {
  const TemporaryDirectory folder;
  write_plot(folder / "p.svg", "t", "x", "y", {{1, 5}, {2, 4}, {3, 4.5}});
  const std::string svg = read_text(folder / "p.svg", 1 << 20);
  CHECK(svg.starts_with("<svg"));
  CHECK(svg.find("</svg>") != std::string::npos);
  CHECK(svg.find("polyline") != std::string::npos);
  write_plot(folder / "one.svg", "t", "x", "y", {{1, 5}});  // a single point has no span
  CHECK(read_text(folder / "one.svg", 1 << 20).find("nan") == std::string::npos);
}
