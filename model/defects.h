// What is wrong with a file, collected, so that one message names all of it.
#pragma once

#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace sinklora {

// The first defects are named, the others counted.
class Defects {
 public:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    if (++count_ <= kNamed) named_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  size_t count() const { return count_; }
  // Throws Error(input), "source: defect; defect; and 3 more".
  void fail_if_any(const std::string& source) const {
    if (count_ == 0) return;
    fail_input("{}: {}{}", source, fmt::join(named_, "; "),
               count_ > kNamed ? fmt::format("; and {} more", count_ - kNamed) : "");
  }

 private:
  static constexpr size_t kNamed = 20;
  size_t count_ = 0;
  std::vector<std::string> named_;
};

}  // namespace sinklora
