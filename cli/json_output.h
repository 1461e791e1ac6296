// --json FILE: the numbers of a verb as one JSON object, "-" for standard output.
#pragma once

#include <fmt/format.h>

#include <string>

#include "base/files.h"
#include "base/json.h"

namespace sinklora {

inline void write_json_output(const std::string& file, const Json& json) {
  const std::string text = json.dump(2) + "\n";
  if (file == "-")
    fmt::print("{}", text);
  else if (!file.empty())
    write_text_atomically(file, text);
}

}  // namespace sinklora
