// Fields of a JSON object from a file, with their limits: every message names file, key, value found and
// values wanted.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"

namespace sinklora {

// A value from a file, short enough for one line of a message.
std::string shown(const Json& value);

class JsonFields {
 public:
  JsonFields(const Json& json, std::string source);  // refuses what is not an object

  const Json& json() const { return json_; }
  const std::string& source() const { return source_; }
  bool has(const char* key) const { return json_.contains(key); }
  bool given(const char* key) const;  // there, and not null

  // The plain forms refuse a missing or null key, the others then give `absent`.
  int64_t integer(const char* key, int64_t low, int64_t high) const;
  int64_t integer_or(const char* key, int64_t absent, int64_t low, int64_t high) const;
  double number(const char* key, double low, double high) const;
  double number_or(const char* key, double absent, double low, double high) const;
  bool boolean_or(const char* key, bool absent) const;
  std::string text(const char* key) const;
  const Json& list(const char* key) const;

 private:
  const Json& at(const char* key) const;

  const Json& json_;
  std::string source_;
};

}  // namespace sinklora
