#include "model/checksums.h"

#include <algorithm>
#include <fstream>
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
    fail_input("{}: its SHA-256 differs from {}; it was damaged, or changed by hand: then remove that file",
               file.string(), kSumsFile);
}

}  // namespace

std::string weights_identity(const fs::path& model) {
  constexpr int64_t kWhole = 64 << 20, kPiece = 16 << 10, kEvery = 4 << 20;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(model))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::string sampled = read_text(model / "config.json", 1 << 20);
  for (const fs::path& file : files) {
    std::ifstream in(file, std::ios::binary);
    const auto size = static_cast<int64_t>(fs::file_size(file));
    sampled += fmt::format("\n{} {}\n", file.filename().string(), size);
    const int64_t piece = size <= kWhole ? size : kPiece;
    for (int64_t at = 0; at < size && in; at += std::max(piece, kEvery)) {
      const auto begin = static_cast<int64_t>(sampled.size()), count = std::min(piece, size - at);
      sampled.resize(static_cast<size_t>(begin + count));
      in.seekg(at);
      in.read(sampled.data() + begin, count);
    }
    if (!in) fail_input("{}: cannot be read", file.string());
  }
  return fmt::format("{:016x}", xxh3_64(sampled));
}

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
