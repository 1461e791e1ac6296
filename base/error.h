// Errors are exceptions that say what to do: which file, tensor or option, the value found, the value wanted.
// main() prints `what()` on one line and leaves with `code`. User errors are never asserts.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace sinklora {

enum class ExitCode : int {
  ok = 0,
  usage = 2,         // the command line or a config file is wrong
  input = 3,         // an input file is broken, hostile or does not match
  does_not_fit = 4,  // the run, model or cache needs more memory than there is
  non_finite = 5,    // a loss, gradient or logit is NaN or Inf
  communicator = 6,  // a peer died or disagreed
  internal = 70,     // a defect of this program
  preempted = 75,    // saved on a signal; run again to go on (EX_TEMPFAIL)
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  ExitCode code;
};

template <class... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::usage, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
[[noreturn]] void fail_input(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::input, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
[[noreturn]] void fail_internal(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::internal, fmt::format(format, std::forward<Args>(args)...));
}

// Narrowing that must not lose a bit: used at the few places where a library wants int.
template <class To, class From>
To narrow(From value, const char* what) {
  static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
  const To result = static_cast<To>(value);
  if (static_cast<From>(result) != value || (result < To{}) != (value < From{}))
    fail_internal("{}: {} does not fit into {} bits", what, value, sizeof(To) * 8);
  return result;
}

}  // namespace sinklora
