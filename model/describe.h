// Models and adapters in words, and what is wrong with them. All input is untrusted.
#pragma once

#include <filesystem>
#include <string>

namespace sinklora {

std::string describe_model(const std::filesystem::path& directory);
std::string describe_adapter(const std::filesystem::path& directory);
std::string describe_safetensors(const std::filesystem::path& file);

// Read every byte as well: throws Error(input) on the first NaN or infinity. An adapter whose base lies where
// it says is compared with it. All return the description.
std::string verify_model(const std::filesystem::path& directory);
std::string verify_adapter(const std::filesystem::path& directory);
std::string verify_safetensors(const std::filesystem::path& file);

}  // namespace sinklora
