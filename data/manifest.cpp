#include "data/manifest.h"

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json_fields.h"

namespace sinklora {
namespace fs = std::filesystem;

Json to_json(const ShardEntry& entry) {
  return {{"file", entry.file},
          {"bytes", entry.bytes},
          {"n_examples", entry.n_examples},
          {"tokens", entry.tokens},
          {"scored_tokens", entry.scored_tokens},
          {"xxh3_128", entry.xxh3_128}};
}

ShardEntry shard_entry(const Json& json, const std::string& source) {
  constexpr int64_t kMost = int64_t{1} << 45;  // so that the sum of all shards stays within 64 bits
  const JsonFields fields(json, source + ": shards");
  const auto count = [&](const char* key) { return fields.integer(key, 0, kMost); };
  ShardEntry entry{fields.text("file"), count("bytes"),         count("n_examples"),
                   count("tokens"),     count("scored_tokens"), fields.text("xxh3_128")};
  const bool bare = !entry.file.empty() && entry.file.front() != '.' && entry.file.size() < 256 &&
                    entry.file.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
  if (!bare) fail_input("{}: \"{}\" is not the bare name of a file in its folder", source, entry.file);
  return entry;
}

std::optional<std::vector<ShardEntry>> read_manifest(const fs::path& folder) {
  const fs::path path = folder / kManifestName;
  if (!fs::exists(path)) return {};
  const Json json = read_json(path);
  const auto shards = json.is_object() ? json.find("shards") : json.end();
  if (shards == json.end()) return {};
  if (!shards->is_array() || shards->empty())
    fail_input("{}: \"shards\" is not a list of shards", path.string());
  std::vector<ShardEntry> entries;
  for (const Json& entry : *shards) entries.push_back(shard_entry(entry, path.string()));
  return entries;
}

std::string shard_differs(const fs::path& path, const ShardEntry& entry) {
  const int64_t bytes = ReadFile(path).size();
  if (bytes != entry.bytes) return fmt::format("has {} bytes, its manifest says {}", bytes, entry.bytes);
  if (xxh3_128_of_file(path) != entry.xxh3_128) return "its content differs from the hash in its manifest";
  return {};
}

}  // namespace sinklora
