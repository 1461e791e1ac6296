// sinklora env: versions, the machine, and the settings in force; what a report of a problem should hold.
#include <fmt/format.h>
#include <hdf5.h>
#include <omp.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/progress.h"
#include "base/version.h"
#include "cli/output.h"
#include "cli/verbs.h"
#include "comm/nccl_communicator.h"
#include "kernels/cpu/blas_info.h"

namespace sinklora {
namespace {

Json environment() {
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) < 0) fail_internal("HDF5 does not tell its version");
  const Machine machine = look_at_machine();
  Json settings = Json::object();
  for (const auto& [name, value] : settings_in_force()) settings[name] = value;
  return {{"sinklora", SINKLORA_VERSION},
          {"commit", built_commit()},
          {"compiler", __VERSION__},
          {"hdf5", fmt::format("{}.{}.{}", major, minor, release)},
          {"openblas", blas_description()},
          {"cpu", machine.cpu},
          {"cpu_features", machine.features},
          {"cpus", machine.cpus},
          {"openmp_threads", omp_get_max_threads()},
          {"memory_bytes", machine.memory},
          {"available_memory_bytes", machine.available_memory},
          {"free_disk_bytes", free_bytes(".")},
          {"cuda", "not built"},
          {"nccl", nccl_version()},
          {"settings", settings}};
}

void print(const Json& environment) {
  for (const auto& [key, value] : environment.items()) {
    std::string label = key, text;
    if (key.ends_with("_bytes")) {
      label = key.substr(0, key.size() - std::string("_bytes").size());
      text = format_bytes(value.get<double>());
    } else if (key == "cpu_features") {
      text = fmt::format("{}", fmt::join(value.get<std::vector<std::string>>(), " "));
    } else if (key == "settings") {
      for (const auto& [name, setting] : value.items())
        text += fmt::format("{}={} ", name, setting.get<std::string>());
    } else {
      text = value.is_string() ? value.get<std::string>() : value.dump();
    }
    std::replace(label.begin(), label.end(), '_', ' ');
    fmt::print("{:<17} {}\n", label, text.empty() ? "none" : text);
  }
}

}  // namespace

void add_env(CLI::App& app) {
  auto json = std::make_shared<std::string>();
  CLI::App& verb = *app.add_subcommand("env", "versions, devices and settings in force");
  verb.add_option("--json", *json, "write one JSON object to this file (- for standard output)")
      ->type_name("FILE");
  verb.footer(
      "Examples:\n"
      "  sinklora env\n"
      "  sinklora env --json -\n"
      "  OMP_NUM_THREADS=1 sinklora env --json env.json\n"
      "Exit codes: 0 done, 2 wrong command line, 3 the file cannot be written.");
  verb.callback([json] {
    const Json found = environment();
    if (!write_result(*json, found)) print(found);
  });
}

}  // namespace sinklora
