#include "base/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <string_view>

namespace sinklora {
namespace {

// The rest of the first line that begins with `key`, after the colon and blanks; empty if there is none.
std::string value_of(const char* file, std::string_view key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(key)) continue;
    const size_t start = line.find_first_not_of(": \t", key.size());
    return start == std::string::npos ? std::string{} : line.substr(start);
  }
  return {};
}

int64_t memory_line(std::string_view key) {  // "MemTotal:       24684564 kB"
  std::istringstream words(value_of("/proc/meminfo", key));
  int64_t kilobytes = 0;
  return words >> kilobytes ? kilobytes * 1024 : 0;
}

// A number in a control-group file; -1 where there is none or it says "max".
int64_t control_group(const char* file) {
  std::ifstream in(file);
  int64_t bytes = -1;
  return in >> bytes ? bytes : -1;
}

}  // namespace

Machine look_at_machine() {
  Machine machine;
  machine.cpu = value_of("/proc/cpuinfo", "model name");
  if (machine.cpu.empty()) machine.cpu = "unknown";

  static const std::set<std::string> wanted = {
      "sse4_2",      "avx",         "avx2",     "fma",   "f16c", "avx512f", "avx512bw",
      "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve"};
  std::istringstream flags(value_of("/proc/cpuinfo", "flags") + " " + value_of("/proc/cpuinfo", "Features"));
  for (std::string flag; flags >> flag;)
    if (wanted.contains(flag)) machine.features.push_back(flag);

  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  machine.cpus = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed)
                                                                     : ::sysconf(_SC_NPROCESSORS_ONLN);
  machine.memory = memory_line("MemTotal");
  machine.available_memory = memory_line("MemAvailable");
  if (const int64_t limit = control_group("/sys/fs/cgroup/memory.max"); limit > 0 && limit < machine.memory) {
    machine.memory = limit;
    const int64_t used = std::max<int64_t>(0, control_group("/sys/fs/cgroup/memory.current"));
    machine.available_memory = std::min(machine.available_memory, std::max<int64_t>(0, limit - used));
  }
  return machine;
}

std::vector<std::pair<std::string, std::string>> settings_in_force() {
  std::vector<std::pair<std::string, std::string>> settings;
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view line = *entry;
    const size_t equals = line.find('=');
    if (equals == std::string_view::npos) continue;
    for (const std::string_view prefix : {"NCCL_", "CUDA_", "OMP_", "OPENBLAS_", "HDF5_"})
      if (line.starts_with(prefix)) settings.emplace_back(line.substr(0, equals), line.substr(equals + 1));
  }
  std::sort(settings.begin(), settings.end());
  return settings;
}

}  // namespace sinklora
