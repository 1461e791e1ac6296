#include "base/json_fields.h"

#include "base/error.h"

namespace sinklora {

std::string shown(const Json& value) {
  constexpr size_t kLongest = 80;
  // Big values are cut before they are printed: dumping a hostile document would cost as much as the
  // document.
  if (value.is_structured() && value.size() > 16)
    return fmt::format("{} of {} values", value.type_name(), value.size());
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

JsonFields::JsonFields(const Json& json, std::string source) : json_(json), source_(std::move(source)) {
  if (!json.is_object()) fail_input("{}: found {}, wanted a JSON object", source_, shown(json));
}

bool JsonFields::given(const char* key) const {
  const auto found = json_.find(key);
  return found != json_.end() && !found->is_null();
}

const Json& JsonFields::at(const char* key) const {
  if (!given(key)) fail_input("{}: {} is missing", source_, key);
  return json_.at(key);
}

int64_t JsonFields::integer(const char* key, int64_t low, int64_t high) const {
  const Json& value = at(key);
  const bool fits =
      value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
  const int64_t number = fits ? value.get<int64_t>() : 0;
  if (!fits || number < low || number > high)
    fail_input("{}: {} is {}, wanted a whole number from {} to {}", source_, key, shown(value), low, high);
  return number;
}

int64_t JsonFields::integer_or(const char* key, int64_t absent, int64_t low, int64_t high) const {
  return given(key) ? integer(key, low, high) : absent;
}

double JsonFields::number(const char* key, double low, double high) const {
  const Json& value = at(key);
  const double number = value.is_number() ? value.get<double>() : low - 1;
  if (!value.is_number() || !(number >= low && number <= high))
    fail_input("{}: {} is {}, wanted a number from {} to {}", source_, key, shown(value), low, high);
  return number;
}

double JsonFields::number_or(const char* key, double absent, double low, double high) const {
  return given(key) ? number(key, low, high) : absent;
}

bool JsonFields::boolean_or(const char* key, bool absent) const {
  if (!given(key)) return absent;
  if (!at(key).is_boolean()) fail_input("{}: {} is {}, wanted true or false", source_, key, shown(at(key)));
  return at(key).get<bool>();
}

std::string JsonFields::text(const char* key) const {
  if (!at(key).is_string()) fail_input("{}: {} is {}, wanted a string", source_, key, shown(at(key)));
  return at(key).get<std::string>();
}

const Json& JsonFields::list(const char* key) const {
  if (!at(key).is_array()) fail_input("{}: {} is {}, wanted a list", source_, key, shown(at(key)));
  return at(key);
}

}  // namespace sinklora
