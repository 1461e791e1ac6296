// What this machine has: for `sinklora env`, and for anything that must fit into memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace sinklora {

struct Machine {
  std::string cpu;                    // model name, "unknown" where the kernel does not say
  std::vector<std::string> features;  // of the instruction set, those that matter to linear algebra
  int64_t cpus = 0;                   // that this process may run on
  int64_t memory = 0;                 // bytes; the container's limit where that is lower
  int64_t available_memory = 0;       // bytes that can be had without swapping, within that limit
};

// `root`: where proc/ and sys/ lie; another one than "/" is for tests.
Machine look_at_machine(const std::filesystem::path& root = "/");

// Environment variables whose names begin with one of a few prefixes (NCCL_, CUDA_, OMP_ ...), sorted.
std::vector<std::pair<std::string, std::string>> settings_in_force();

}  // namespace sinklora
