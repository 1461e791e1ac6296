// Plots of what metrics.jsonl says.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace sinklora {

// A line plot as an SVG file: points (x, y), axes with ticks and labels.
void write_plot(const std::filesystem::path& path, const std::string& title, const std::string& x_label,
                const std::string& y_label, const std::vector<std::pair<double, double>>& points);

}  // namespace sinklora
