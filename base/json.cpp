#include "base/json.h"

#include <set>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/foreign_format.h"
#include "base/json_fields.h"

namespace sinklora {
namespace {

// The library's messages quote the file's bytes as they are, which a terminal might obey.
std::string printable(std::string_view text) {
  constexpr size_t kLongest = 300;
  std::string out;
  for (const char c : text.substr(0, kLongest))
    out += c >= ' ' && c <= '~' ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return text.size() <= kLongest ? out : out + "...";
}

template <class Value>
Value parse_guarded(std::string_view text, const std::string& source) {
  refuse_foreign_format(text, source);
  std::vector<std::set<std::string>> keys;  // of every object that is open
  const auto guard = [&](int depth, typename Value::parse_event_t event, Value& parsed) {
    using Event = typename Value::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= kMaxJsonDepth)
        fail_input("{}: JSON nesting is deeper than {} levels; refusing to read it", source, kMaxJsonDepth);
      if (event == Event::object_start) keys.emplace_back();
    } else if (event == Event::object_end) {
      keys.pop_back();
    } else if (event == Event::key) {
      const auto key = parsed.template get<std::string>();
      if (!keys.back().insert(key).second)
        fail_input("{}: JSON key {} occurs twice in one object", source, shown(Json(key)));
    }
    return true;
  };
  // The library takes a zero byte for the end and reads nothing behind it.
  if (text.find('\0') != std::string_view::npos)
    fail_input("{}: not valid JSON: it holds a zero byte", source);
  try {
    return Value::parse(text.begin(), text.end(), guard);
  } catch (const typename Value::exception& error) {
    const std::string_view said = error.what(), problem = said.substr(0, said.find("; last read: "));
    if (problem.find("surrogate U+") != std::string_view::npos) {
      const size_t place = problem.find("at line");
      fail_input("{}: holds half of a character (a lone \\ud800 to \\udfff) {}; take it out, or the record",
                 source, problem.substr(place, problem.find(':', place) - place));
    }
    fail_input("{}: not valid JSON: {}", source, printable(said));
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& source) {
  return parse_guarded<Json>(text, source);
}
SortedJson parse_sorted_json(std::string_view text, const std::string& source) {
  return parse_guarded<SortedJson>(text, source);
}

Json read_json(const std::filesystem::path& path, int64_t max_bytes) {
  return parse_json(read_text(path, max_bytes), path.string());
}

std::string dump_json(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

void write_json(const std::filesystem::path& path, const Json& json) {
  write_text_atomically(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace sinklora
