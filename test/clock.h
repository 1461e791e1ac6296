// Time that a test may promise: of this thread's work, not of waiting for a disk or for other programs.
#pragma once

#include <ctime>

namespace sinklora::test {

inline double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace sinklora::test
