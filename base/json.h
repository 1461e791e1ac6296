// JSON from files we did not write: nlohmann-json behind a guard, because the library alone recurses on deep
// nesting and lets the last of two equal keys win.
#pragma once

#include <nlohmann/json.hpp>

#include <filesystem>
#include <string>
#include <string_view>

namespace sinklora {

using Json = nlohmann::ordered_json;
using SortedJson = nlohmann::json;  // finds a key in O(log n): for objects of many thousands of members

inline constexpr int kMaxJsonDepth = 64;

// Parses one JSON value. Throws Error(input) naming `source` on bad syntax, duplicate keys, invalid UTF-8 or
// nesting deeper than kMaxJsonDepth.
Json parse_json(std::string_view text, const std::string& source);
SortedJson parse_sorted_json(std::string_view text, const std::string& source);

// Reads and parses a whole file of at most `max_bytes`.
Json read_json(const std::filesystem::path& path, int64_t max_bytes = 100'000'000);

// The other way. Bytes that are not UTF-8 (a path, a reply cut inside a character), at which the library throws,
// become U+FFFD.
std::string dump_json(const Json& json);                               // one line, without its end
void write_json(const std::filesystem::path& path, const Json& json);  // indented, as write_text_atomically()

}  // namespace sinklora
