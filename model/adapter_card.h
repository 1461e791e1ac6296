// What others must know of an adapter: PEFT keeps no RoPE scaling with one, and takes the base's.
#pragma once

#include <filesystem>
#include <string>

#include "model/config.h"

namespace sinklora {

// What a Python program sets on the base's config for the angles of `trained`, as a sentence; "" where the base came
// with them (own_scaling()).
std::string rope_remedy(const LlamaConfig& trained);

// README.md, the model card of PEFT: base, context, and how to load the adapter.
void write_adapter_card(const std::filesystem::path& directory, const std::string& base_model_path,
                        const LlamaConfig& trained, int64_t context);

}  // namespace sinklora
