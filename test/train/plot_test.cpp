#include "train/plot.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <set>

#include "base/files.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::TemporaryDirectory;

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

TEST_CASE("the ticks of a plot come to an end where values are all but equal, huge or not finite") {
  const TemporaryDirectory folder;
  const double after2 = std::nextafter(2.0, 3), huge = 1e300,
               infinite = std::numeric_limits<double>::infinity();
  using Points = std::vector<std::pair<double, double>>;
  // The latter: whether doubles can hold the span and its ticks.
  const std::pair<Points, bool> cases[] = {
      {{{1, 2}, {2, after2}}, true},   {{{2, 1}, {after2, 2}}, true},
      {{{1, huge}, {2, huge}}, true},  {{{1, -huge}, {2, std::nextafter(-huge, 0)}}, true},
      {{{1, 0}, {2, 5e-324}}, false},  {{{1, -huge * 1e8}, {2, huge * 1e8}}, false},
      {{{1, 1}, {2, infinite}}, false}};
  for (const auto& [points, numbers] : cases) {
    CAPTURE(points.front().second);
    CAPTURE(points.back().second);
    write_plot(folder / "p.svg", "t", "x", "y", points);
    const std::string svg = read_text(folder / "p.svg", 1 << 16);
    CHECK(svg.find("</svg>") != std::string::npos);
    if (!numbers) continue;
    CHECK(svg.find("nan") == std::string::npos);
    CHECK(svg.find("inf") == std::string::npos);
    std::set<std::string> heights;  // of the lines across
    size_t lines = 0;
    for (size_t at = 0; (at = svg.find(" y1=\"", at)) != std::string::npos; ++at, ++lines)
      heights.insert(svg.substr(at, svg.find(" y2", at) - at));
    CHECK(lines >= 3);
    CHECK(lines <= 7);
    CHECK(heights.size() == lines);
  }
}
