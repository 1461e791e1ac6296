// One progress line: redrawn in place on a terminal, a plain line now and then into a pipe.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace sinklora {

class Progress {
 public:
  // `total` 0: unknown. `unit`: "MB", "rows", "windows".
  Progress(std::string label, double total, std::string unit, std::FILE* out = stderr);
  ~Progress();               // ends the line
  void update(double done);  // cheap: draws at most ten times a second

 private:
  std::string label_, unit_;
  double total_;
  std::FILE* out_;
  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_{};
};

}  // namespace sinklora
