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

namespace fs = std::filesystem;

// The rest of the first line that begins with `key`, after the colon and blanks; empty if there is none.
std::string value_of(const fs::path& file, std::string_view key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(key)) continue;
    const size_t start = line.find_first_not_of(": \t", key.size());
    return start == std::string::npos ? std::string{} : line.substr(start);
  }
  return {};
}

int64_t number_of(const fs::path& file, std::string_view key) {
  std::istringstream words(value_of(file, key));
  int64_t number = 0;
  return words >> number ? number : 0;
}

// A number in a control-group file; -1 where there is none or it says "max".
int64_t control_group(const fs::path& file) {
  std::ifstream in(file);
  int64_t bytes = -1;
  return in >> bytes ? bytes : -1;
}

}  // namespace

Machine look_at_machine(const fs::path& root) {
  const fs::path cpuinfo = root / "proc/cpuinfo", meminfo = root / "proc/meminfo",
                 group = root / "sys/fs/cgroup";
  Machine machine;
  machine.cpu = value_of(cpuinfo, "model name");
  if (machine.cpu.empty()) machine.cpu = "unknown";

  static const std::set<std::string> wanted = {
      "sse4_2",      "avx",         "avx2",     "fma",   "f16c", "avx512f", "avx512bw",
      "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve"};
  std::istringstream flags(value_of(cpuinfo, "flags") + " " + value_of(cpuinfo, "Features"));
  for (std::string flag; flags >> flag;)
    if (wanted.contains(flag)) machine.features.push_back(flag);

  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  machine.cpus = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed)
                                                                     : ::sysconf(_SC_NPROCESSORS_ONLN);
  machine.memory = 1024 * number_of(meminfo, "MemTotal");  // "MemTotal:       24684564 kB"
  machine.available_memory = 1024 * number_of(meminfo, "MemAvailable");
  if (const int64_t limit = control_group(group / "memory.max"); limit > 0 && limit < machine.memory) {
    machine.memory = limit;
    // The group is charged for files it has read too (a model, say), which the kernel drops when it must.
    const fs::path stat = group / "memory.stat";
    const int64_t files = number_of(stat, "active_file") + number_of(stat, "inactive_file"),
                  used = std::max<int64_t>(0, control_group(group / "memory.current") - files);
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
