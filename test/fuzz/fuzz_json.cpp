// Guarded JSON: any bytes are either a value that prints and parses back to itself, or an Error(input).
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

using namespace sinklora;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Json value;
  try {
    value = parse_json(text, "fuzz");
  } catch (const Error& error) {
    if (error.code != ExitCode::input) std::abort();
    return 0;
  }
  if (parse_json(value.dump(), "again") != value) std::abort();
  return 0;
}
