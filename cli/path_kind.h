// What inspect and verify find at a path.
#pragma once

#include <filesystem>

#include "base/error.h"
#include "data/inspect_dataset.h"

namespace sinklora {

enum class PathKind { adapter, model, dataset, safetensors };

// The first kind that fits. Throws Error(input) where none does.
inline PathKind kind_of(const std::filesystem::path& path) {
  if (!exists(path)) fail_input("{}: does not exist", path.string());
  if (exists(path / "adapter_config.json")) return PathKind::adapter;
  if (exists(path / "config.json")) return PathKind::model;
  if (is_dataset(path)) return PathKind::dataset;
  if (path.extension() == ".safetensors") return PathKind::safetensors;
  fail_input(
      "{}: not recognised; models, adapters, checkpoints, runs, .safetensors, shards (.h5 or a directory of "
      "them) and token streams (.bin) are",
      path.string());
}

}  // namespace sinklora
