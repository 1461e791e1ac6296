// What a run says: metrics.jsonl and the console line.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/json.h"

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
// there is no file. A torn last line is left out, and so, with a word on stderr, is one that is no such object or
// that `each` throws at: a crash may leave anything, and a good checkpoint is worth more.
std::string lines_up_to(const std::filesystem::path& path, int64_t step,
                        const std::function<void(const Json&)>& each = {});

class MetricsLog {
 public:
  // Opens OUT/metrics.jsonl and drops the lines after `resumed_step` and a torn last one.
  MetricsLog(const std::filesystem::path& out, int64_t resumed_step);
  void write(const StepMetrics& metrics);
  void sync() { file_->sync(); }
  int64_t last_step() const { return last_step_; }  // that was kept; 0: none
  const std::vector<std::pair<double, double>>& losses() const {
    return losses_;
  }  // (step, loss) of all steps

 private:
  std::optional<AppendFile> file_;
  std::vector<std::pair<double, double>> losses_;
  int64_t last_step_ = 0;
};

// "step 120/1000 | loss 1.8342 | gnorm 0.41 | lr 2.00e-05 | 9812 tok/s | 1.67 s | mem 3.1 GiB | eta 0:24:31"
std::string console_line(const StepMetrics& metrics, int64_t steps, double eta_seconds);

}  // namespace sinklora
