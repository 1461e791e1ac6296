#include "train/metrics.h"

#include <cerrno>
#include <fstream>
#include <system_error>

#include "base/error.h"
#include "base/format.h"
#include "base/json.h"

namespace sinklora {

std::string lines_up_to(const std::filesystem::path& path, int64_t step,
                        const std::function<void(const Json&)>& each) {
  std::string kept;
  int64_t bad = 0;
  errno = 0;
  std::ifstream old(path);
  const auto refuse = [&] {
    fail_input("{}: cannot be read, and would be lost: {}; move it away or make it readable", path.string(),
               std::generic_category().message(errno));
  };
  if (!old.is_open() && errno != ENOENT) refuse();
  for (std::string line; std::getline(old, line);) {
    if (old.eof()) break;  // no newline at its end: torn by a kill
    try {
      const Json json = parse_json(line, path.string());
      if (!json.at("step").is_number_integer()) fail_input("step is no whole number");
      if (json["step"] > step) break;
      if (each) each(json);
      kept += line + "\n";
    } catch (const Error&) {
      ++bad;
    } catch (const Json::exception&) {
      ++bad;
    }
  }
  if (old.bad()) refuse();
  if (bad > 0)
    fmt::print(stderr, "{}: lines that are no record of a step, and are left out: {}\n", path.string(), bad);
  return kept;
}

MetricsLog::MetricsLog(const std::filesystem::path& out, int64_t resumed_step) {
  const std::filesystem::path path = out / "metrics.jsonl";
  const std::string kept = lines_up_to(path, resumed_step, [&](const Json& json) {
    if (!json.value("skipped", false)) losses_.emplace_back(json.at("step"), json.at("loss").get<double>());
    last_step_ = json.at("step");
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

}  // namespace sinklora
