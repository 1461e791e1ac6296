// The splitter of large JSON files against the parser: splitting and parsing the elements must accept what
// parsing the whole array accepts, yield the same, and never depend on the size of the pieces it reads.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "data/json_stream.h"

using namespace sinklora;

namespace {

std::optional<Json> split(std::string_view text, size_t piece, bool& array) {
  const auto read = [&](int64_t offset, std::span<std::byte> out) {
    const size_t count = std::min({piece, out.size(), text.size() - static_cast<size_t>(offset)});
    std::memcpy(out.data(), text.data() + offset, count);
    return static_cast<int64_t>(count);
  };
  try {
    JsonElements elements(read, "fuzz");
    Json joined = Json::array();
    for (std::string element; elements.next(element);) joined.push_back(parse_json(element, "element"));
    array = elements.form() == JsonElements::Form::array;
    return joined;
  } catch (const Error&) {
    return {};
  }
}

std::optional<Json> whole(std::string_view text) {
  try {
    return parse_json(text, "fuzz");
  } catch (const Error&) {
    return {};
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  bool array = false, same_array = false;
  const std::optional<Json> large = split(text, 1 << 20, array), small = split(text, 1, same_array);
  if (large != small) std::abort();
  const std::optional<Json> parsed = whole(text);
  if (parsed && parsed->is_array() && parsed != large) std::abort();
  if (large && array && parsed != large) std::abort();
  return 0;
}
