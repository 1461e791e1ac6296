// data_params.json: the manifest beside the shards of a directory, with Cerebras' keys and ours.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/shard_writer.h"

namespace sinklora {

inline constexpr char kManifestName[] = "data_params.json";

Json to_json(const ShardEntry& entry);
// Throws Error(input) naming `source` on anything missing, negative, or a file name that leads out of the
// folder.
ShardEntry shard_entry(const Json& json, const std::string& source);

// The shards that `folder`'s manifest lists; empty when there is no manifest, or one of Cerebras' without
// hashes.
std::optional<std::vector<ShardEntry>> read_manifest(const std::filesystem::path& folder);

// Whether `path` has the size and the hash of `entry`: empty if so, else what differs. Reads the whole file,
// which costs what the disk takes for it, and a second for 5 GB that the page cache holds.
std::string shard_differs(const std::filesystem::path& path, const ShardEntry& entry);

}  // namespace sinklora
