#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include "base/format.h"

namespace sinklora {

Progress::Progress(std::string label, double total, std::string unit, std::FILE* out)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      out_(out),
      terminal_(::isatty(::fileno(out)) == 1),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (terminal_ && drawn_) std::fputc('\n', out_);
}

void Progress::update(double done) {
  const auto now = std::chrono::steady_clock::now();
  const double interval = terminal_ ? 0.1 : 10.0;
  const bool finished = total_ > 0 && done >= total_;
  if (!finished && std::chrono::duration<double>(now - last_).count() < interval) return;
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  std::string line = fmt::format("{} {:.1f}", label_, done);
  if (total_ > 0)
    line += fmt::format("/{:.1f} {} ({:.0f} %)", total_, unit_, 100.0 * done / total_);
  else
    line += fmt::format(" {}", unit_);
  if (elapsed > 0) line += fmt::format(" | {:.1f} {}/s", done / elapsed, unit_);
  if (total_ > 0 && done > 0 && !finished)
    line += fmt::format(" | eta {}", format_duration(elapsed * (total_ - done) / done));
  fmt::print(out_, fmt::runtime(terminal_ ? "\r{}\033[K" : "{}\n"), line);
  std::fflush(out_);
  drawn_ = true;
}

}  // namespace sinklora
