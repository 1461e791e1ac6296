// Numbers as a person reads them.
#pragma once

#include <string>

namespace sinklora {

inline constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

std::string format_duration(double seconds);  // "1:02:03"
std::string format_count(double value);       // "12.3M"
std::string format_bytes(double bytes);       // "1.50 GiB"

}  // namespace sinklora
