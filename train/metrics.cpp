#include "train/metrics.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "kernels/backend.h"
#include "kernels/cuda_backend.h"
#include "kernels/operation_counts.h"

namespace sinklora {
namespace {

constexpr double kWidth = 800, kHeight = 400, kLeft = 70, kRight = 20, kTop = 40, kBottom = 50;

struct Peak {
  const char* name;  // is found in the GPU's
  double operations;
};
constexpr Peak kPeaks[] = {{"H200 NVL", 835e12}, {"H100 NVL", 835e12}, {"H100 PCIe", 756e12},
                           {"H100", 989.4e12},   {"H200", 989.4e12},   {"A100", 312e12}};

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

std::optional<double> dense_bf16_peak(std::string_view gpu) {
  for (const Peak& peak : kPeaks)
    if (gpu.find(peak.name) != std::string_view::npos) return peak.operations;
  return std::nullopt;
}

std::optional<double> peak_operations(const std::string& device, const std::string& precision, int index) {
  if (device != "cuda" || precision != "bf16") return std::nullopt;
  const CudaDescription found = describe_cuda();
  const auto number = static_cast<size_t>(index);
  return number < found.devices.size() ? dense_bf16_peak(found.devices[number]) : std::nullopt;
}

double model_operations(const LlamaConfig& c, const AttentionPattern& pattern,
                        std::span<const int64_t> offsets, bool trains_all) {
  const int64_t block =
      c.hidden_size * (c.qkv_width() + c.query_width()) + 3 * c.hidden_size * c.intermediate_size;
  const auto weights = static_cast<double>(c.num_layers * block + c.vocab_size * c.hidden_size);
  double pairs = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    pairs += static_cast<double>(visible_pairs(pattern, c.num_heads, offsets[s + 1] - offsets[s]));
  const auto tokens = static_cast<double>(offsets.back() - offsets.front());
  return (trains_all ? 6.0 : 4.0) * weights * tokens +
         14.0 * static_cast<double>(c.head_dim * c.num_layers) * pairs;
}

std::string lines_up_to(const std::filesystem::path& path, int64_t step,
                        const std::function<void(const Json&)>& each) {
  std::string kept;
  std::ifstream old(path);
  for (std::string line; std::getline(old, line);) {
    if (old.eof()) break;  // no newline at its end: torn by a kill
    const Json json = parse_json(line, path.string());
    if (json.value("step", int64_t{0}) > step) break;
    if (each) each(json);
    kept += line + "\n";
  }
  return kept;
}

MetricsLog::MetricsLog(const std::filesystem::path& out, int64_t resumed_step) {
  const std::filesystem::path path = out / "metrics.jsonl";
  const std::string kept = lines_up_to(path, resumed_step, [&](const Json& json) {
    if (!json.value("skipped", false)) losses_.emplace_back(json.value("step", 0.0), json.value("loss", 0.0));
  });
  write_text_atomically(path, kept);
  file_.emplace(path);
}

void MetricsLog::write(const StepMetrics& m) {
  Json json{{"step", m.step},
            {"epoch", m.epoch},
            {"loss", m.loss},
            {"grad_norm", m.grad_norm},
            {"lr", m.learning_rate},
            {"tokens", m.tokens},
            {"tokens_per_s", m.tokens_per_s},
            {"step_ms", m.step_ms},
            {"mfu", m.mfu < 0 ? Json(nullptr) : Json(m.mfu)},
            {"mem_gib", m.mem_gib}};
  if (m.skipped)
    json["skipped"] = true;
  else
    losses_.emplace_back(static_cast<double>(m.step), m.loss);
  file_->write(json.dump() + "\n");
}

std::string console_line(const StepMetrics& m, int64_t steps, double eta_seconds) {
  std::string line =
      fmt::format("step {}/{} | loss {:.4f} | gnorm {:.3f} | lr {:.2e} | {:.0f} tok/s | {:.2f} s", m.step,
                  steps, m.loss, m.grad_norm, m.learning_rate, m.tokens_per_s, m.step_ms / 1000);
  if (m.mfu >= 0) line += fmt::format(" | MFU {:.1f}%", 100 * m.mfu);
  line += fmt::format(" | mem {:.2f} GiB | eta {}", m.mem_gib, format_duration(eta_seconds));
  if (m.skipped) line += " | skipped";
  return line;
}

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

double memory_gib(const std::string& device, int device_index, int64_t free_before) {
  if (device == "cuda")
    return static_cast<double>(free_before - available_memory(device, device_index)) / kGiB;
  struct rusage usage {};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<double>(usage.ru_maxrss) / (1024.0 * 1024.0);
}

}  // namespace sinklora
