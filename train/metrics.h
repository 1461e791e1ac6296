// What a run says: metrics.jsonl, the console line, and the loss plot.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "kernels/attention_pattern.h"
#include "model/config.h"

namespace sinklora {

struct StepMetrics {
  int64_t step = 0;
  double epoch = 0, loss = 0, grad_norm = 0, learning_rate = 0;
  int64_t tokens = 0;  // seen since the run began
  double tokens_per_s = 0, step_ms = 0;
  double mfu = -1;  // share of the device's peak; negative: its peak is not known, null in the file
  double mem_gib = 0;
  bool skipped = false;  // nothing to learn from: no scored token, or a non-finite gradient
};

// The whole lines of a file of JSON objects with a "step" up to `step`, each of which is shown to `each`; "" where
// there is no file. A torn last line is left out.
std::string lines_up_to(const std::filesystem::path& path, int64_t step,
                        const std::function<void(const Json&)>& each = {});

class MetricsLog {
 public:
  // Opens OUT/metrics.jsonl and drops the lines after `resumed_step` and a torn last one.
  MetricsLog(const std::filesystem::path& out, int64_t resumed_step);
  void write(const StepMetrics& metrics);
  const std::vector<std::pair<double, double>>& losses() const {
    return losses_;
  }  // (step, loss) of all steps

 private:
  std::optional<AppendFile> file_;
  std::vector<std::pair<double, double>> losses_;
};

// "step 120/1000 | loss 1.8342 | gnorm 0.41 | lr 2.00e-05 | 9812 tok/s | 1.67 s | mem 3.1 GiB | eta 0:24:31"
std::string console_line(const StepMetrics& metrics, int64_t steps, double eta_seconds);

// Operations a second of dense bf16 products by the vendor's datasheet, from describe_cuda()'s words for a GPU;
// empty for one that is not known here.
std::optional<double> dense_bf16_peak(std::string_view gpu);
// The same for what a run computes on; empty on the CPU and in other precisions.
std::optional<double> peak_operations(const std::string& device, const std::string& precision, int index);

// Operations of forward and backward that a model needs for sequences that begin at `offsets` ([S + 1], the last
// one the end): 4 a token and weight of the linears and the head (forward and input gradient; 6 where every
// weight is trained), and 14 D a visible pair and head. Recomputation and adapters are not counted.
double model_operations(const LlamaConfig& config, const AttentionPattern& pattern,
                        std::span<const int64_t> offsets, bool trains_all);

// A line plot as an SVG file: points (x, y), axes with ticks and labels.
void write_plot(const std::filesystem::path& path, const std::string& title, const std::string& x_label,
                const std::string& y_label, const std::vector<std::pair<double, double>>& points);

// cuda: what the GPU has less to give than `free_before` bytes, those of other programs on it included; cpu:
// this process at its largest.
double memory_gib(const std::string& device, int device_index, int64_t free_before);

}  // namespace sinklora
