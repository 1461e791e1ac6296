#include "model/checksums.h"

#include <map>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSumsFile = "SHA256SUMS";

// The sum of each name. Where the file may be another's, lines that are none of a file right here are passed over.
std::map<std::string, std::string> read_sums(const fs::path& directory, bool ours) {
  const fs::path path = directory / kSumsFile;
  std::istringstream lines(read_text(path, 1 << 20));
  std::map<std::string, std::string> sums;
  for (std::string line; std::getline(lines, line);) {
    std::string name = line.size() > 66 ? line.substr(66) : "";
    if (!ours && name.starts_with("./")) name.erase(0, 2);
    const bool understood = !name.empty() && name.find('/') == std::string::npos && line[0] != '#';
    if (understood)
      sums[name] = line.substr(0, 64);
    else if (ours)
      fail_input("{}: not a line of sha256sum: \"{}\"", path.string(), line);
  }
  if (ours && sums.empty()) fail_input("{}: lists no file", path.string());
  return sums;
}

void compare(const fs::path& file, const std::string& sum) {
  if (sha256_of_file(file) != sum)
    fail_input("{}: its SHA-256 differs from {}; it was damaged, or changed by hand (then remove {} there)",
               file.string(), kSumsFile, kSumsFile);
}

}  // namespace

void write_sums(const fs::path& directory) {
  std::map<std::string, std::string> sums;
  for (const auto& entry : fs::directory_iterator(directory))
    sums[entry.path().filename().string()] = sha256_of_file(entry.path());
  std::string text;
  for (const auto& [name, sum] : sums) text += sum + "  " + name + "\n";
  write_text_atomically(directory / kSumsFile, text);
}

void verify_sums(const fs::path& directory) {
  for (const auto& [name, sum] : read_sums(directory, true)) compare(directory / name, sum);
}

void verify_sums(const fs::path& directory, const std::vector<std::string>& names) {
  std::error_code error;
  if (!fs::exists(directory / kSumsFile, error)) return;
  const auto sums = read_sums(directory, false);
  for (const std::string& name : names)
    if (const auto found = sums.find(name); found != sums.end()) compare(directory / name, found->second);
}

}  // namespace sinklora
