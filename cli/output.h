// Results of verbs that measure: a JSON object for programs, or text for people.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <string>

#include "base/json.h"

namespace sinklora {

// --json, for write_result(). `path` must outlive the parser.
inline CLI::Option* add_json(CLI::App& verb, std::string& path, const std::string& what = "the result") {
  return verb.add_option("--json", path, "write " + what + " as JSON to FILE, - for standard output")
      ->type_name("FILE");
}

// --json: "-" prints the object to standard output and returns true (nothing else should be printed there); a
// file name writes it there and returns false, as "" does. Where the file cannot be written the object goes to
// standard output, then throws.
inline bool write_result(const std::string& json_path, const Json& result) {
  if (json_path == "-") {
    std::puts(dump_json(result).c_str());
    return true;
  }
  if (json_path.empty()) return false;
  try {
    write_json(json_path, result);
  } catch (...) {  // what took hours to measure is not lost for a wrong name
    write_result("-", result);
    throw;
  }
  return false;
}

}  // namespace sinklora
