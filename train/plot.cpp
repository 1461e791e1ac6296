#include "train/plot.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/files.h"

namespace sinklora {
namespace {

constexpr double kWidth = 800, kHeight = 400, kLeft = 70, kRight = 20, kTop = 40, kBottom = 50;

// A round step that gives about `count` ticks over `span`.
double tick_step(double span, int count) {
  const double rough = span / count, magnitude = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * magnitude >= rough) return factor * magnitude;
  return 10 * magnitude;
}

// What a plot shows of one coordinate, with round numbers in it.
struct Axis {
  double low, high;
  std::vector<double> ticks;
};

Axis make_axis(double low, double high, int count) {
  Axis axis{low, high, {}};
  // A span that no label would show is none; a step must not vanish beside the numbers that it is added to.
  const double size = std::max(std::fabs(low), std::fabs(high));
  if (high - low <= 1e-9 * size) axis.high = low + std::max(1.0, 1e-6 * size);
  const double step = tick_step(axis.high - low, count), first = std::ceil(low / step);
  for (int i = 0; i <= count; ++i)
    if (const double tick = (first + i) * step; tick <= axis.high) axis.ticks.push_back(tick);
  return axis;
}

}  // namespace

void write_plot(const std::filesystem::path& path, const std::string& title, const std::string& x_label,
                const std::string& y_label, const std::vector<std::pair<double, double>>& points) {
  if (points.empty()) return;
  double x0 = points.front().first, x1 = x0, y0 = points.front().second, y1 = y0;
  for (const auto& [x, y] : points) {
    x0 = std::min(x0, x), x1 = std::max(x1, x);
    y0 = std::min(y0, y), y1 = std::max(y1, y);
  }
  const Axis across = make_axis(x0, x1, 8), up = make_axis(y0, y1, 6);
  const auto px = [&](double x) {
    return kLeft + (x - across.low) / (across.high - across.low) * (kWidth - kLeft - kRight);
  };
  const auto py = [&](double y) {
    return kHeight - kBottom - (y - up.low) / (up.high - up.low) * (kHeight - kTop - kBottom);
  };
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n<text x=\"{2}\" y=\"24\" font-size=\"15\" "
      "text-anchor=\"middle\">{3}</text>\n",
      kWidth, kHeight, kWidth / 2, title);
  for (const double x : across.ticks)
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:g}</text>\n", px(x),
                       kHeight - kBottom + 18, x);
  for (const double y : up.ticks)
    svg += fmt::format(
        "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#ddd\"/>\n"
        "<text x=\"{3}\" y=\"{2:.1f}\" text-anchor=\"end\" dy=\"4\">{4:.4g}</text>\n",
        kLeft, kWidth - kRight, py(y), kLeft - 6, y);
  svg += "<polyline fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.5\" points=\"";
  for (const auto& [x, y] : points) svg += fmt::format("{:.1f},{:.1f} ", px(x), py(y));
  svg += fmt::format(
      "\"/>\n<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n"
      "<text transform=\"translate(16,{}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>\n",
      kWidth / 2, kHeight - 12, x_label, kHeight / 2, y_label);
  write_text_atomically(path, svg);
}

}  // namespace sinklora
