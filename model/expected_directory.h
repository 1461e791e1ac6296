// Whether a directory is what was asked for; if not, what is there in its place, and what to give or do instead.
#pragma once

#include <filesystem>

#include "model/safetensors.h"

namespace sinklora {

// A run stands for its newest checkpoint, which the file kLatestName in it names, whether that is there or not; every
// other directory for itself.
inline constexpr char kLatestName[] = "latest";
std::filesystem::path latest_checkpoint(const std::filesystem::path& directory);

// Throws Error(input) where there is no model's config.json, or no adapter_config.json.
void expect_model_directory(const std::filesystem::path& directory);
void expect_adapter_directory(const std::filesystem::path& directory);

// Of a directory that has neither model.safetensors nor its index.
[[noreturn]] void fail_without_weights(const std::filesystem::path& directory);

// Throws Error(input) where a wrapper has changed the names of all tensors.
void expect_plain_names(const SafetensorsFile& file);

}  // namespace sinklora
