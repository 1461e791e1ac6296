// Configurations of known models by name, for benches: nothing is read from disk.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"

namespace sinklora {

const std::vector<std::string>& shape_names();  // llama2-7b, llama3-8b, smollm2-135m
LlamaConfig shape_named(const std::string& name);

}  // namespace sinklora
