#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <set>

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

TEST_CASE("operations of a model are those of its linears and of the pairs that are seen") {
  LlamaConfig config;
  config.vocab_size = 100, config.hidden_size = 8, config.intermediate_size = 20, config.num_layers = 3;
  config.num_heads = 2, config.num_kv_heads = 1, config.head_dim = 4;
  const double weights = 3 * (8 * (8 + 4 + 4) + 8 * 8 + 3 * 8 * 20) + 100 * 8;
  const double pairs = 2 * (5 * 6 / 2 + 2 * 3 / 2);  // two sequences, of 5 and 2 tokens; two heads
  const std::vector<int64_t> offsets{0, 5, 7};
  CHECK(model_operations(config, {}, offsets, false) == 4 * weights * 7 + 14 * 4 * 3 * pairs);
  CHECK(model_operations(config, {}, offsets, true) == 6 * weights * 7 + 14 * 4 * 3 * pairs);
}

TEST_CASE("the peak of a GPU goes by its name, and is not guessed") {
  CHECK(dense_bf16_peak("NVIDIA H100 80GB HBM3, 79.2 GiB, compute capability 9.0") == 989.4e12);
  CHECK(dense_bf16_peak("NVIDIA H200") == 989.4e12);
  CHECK(dense_bf16_peak("NVIDIA H100 PCIe") == 756e12);
  CHECK(!dense_bf16_peak("NVIDIA GeForce RTX 4090"));
  CHECK(!peak_operations("cpu", "fp32", 0));
}
