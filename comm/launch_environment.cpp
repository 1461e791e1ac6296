#include "comm/launch_environment.h"

#include <unistd.h>

#include <charconv>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/hash.h"

namespace sinklora {
namespace {

// The names by which a launcher tells a process its place. Alternatives are separated by spaces.
struct Launcher {
  const char *name, *rank, *world_size, *local_rank, *local_world_size;
  const char* job;  // what tells runs apart
  bool needs_local_rank;
};
constexpr Launcher kLaunchers[] = {
    {"sinklora", "SINKLORA_RANK", "SINKLORA_WORLD_SIZE", "SINKLORA_LOCAL_RANK", "SINKLORA_LOCAL_WORLD_SIZE",
     "", true},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
     "TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT", true},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE OMPI_MCA_ess_base_jobid", true},
    {"Hydra", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID PMI_LOCAL_RANK", "MPI_LOCALNRANKS PMI_LOCAL_SIZE",
     "PMI_JOBID HYDRA_JOBID", false},
    {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS SLURM_NTASKS", "SLURM_LOCALID", "",
     "SLURM_JOB_ID SLURM_STEP_ID", true},
};

struct Setting {
  std::string name, value;
};

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> found;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    found.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return found;
}

// The first of the alternatives that is set, else the first with an empty value.
Setting look_up(const Variables& variables, const char* alternatives) {
  const std::vector<std::string> names = words(alternatives);
  for (const std::string& name : names)
    if (const auto found = variables.find(name); found != variables.end() && !found->second.empty())
      return {name, found->second};
  return {names.empty() ? "" : names.front(), ""};
}

int number(const Setting& setting, int64_t least, int64_t most) {
  int64_t value = 0;
  const char* end = setting.value.data() + setting.value.size();
  const auto [stop, error] = std::from_chars(setting.value.data(), end, value);
  if (error != std::errc() || stop != end || value < least || value > most)
    fail_usage("environment variable {}='{}': wanted a whole number from {} to {}; correct or unset it",
               setting.name, setting.value, least, most);
  return static_cast<int>(value);
}

// A shell of sbatch or salloc looks like rank 0 of the job; only what srun starts is a rank, and a task that
// is alone in its step is no rank of anything: `srun --ntasks=1` is how one program is started there.
bool is_present(const Launcher& launcher, const Variables& variables) {
  if (std::string_view(launcher.name) == "Slurm")
    return variables.contains("SLURM_PROCID") && variables.contains("SLURM_STEP_ID") &&
           look_up(variables, launcher.world_size).value != "1";
  return !look_up(variables, launcher.rank).value.empty() ||
         !look_up(variables, launcher.world_size).value.empty();
}

LaunchEnvironment read(const Launcher& launcher, const Variables& variables) {
  constexpr int kMost = std::numeric_limits<int>::max();
  const Setting rank = look_up(variables, launcher.rank),
                world_size = look_up(variables, launcher.world_size),
                local_rank = look_up(variables, launcher.local_rank),
                local_world_size = look_up(variables, launcher.local_world_size);
  const auto require = [&](const Setting& wanted, const Setting& present) {
    if (wanted.value.empty())
      fail_usage(
          "environment variable {} is set and {} is not: {} sets both; set {}, or unset {} for a run of one "
          "process",
          present.name, wanted.name, launcher.name, wanted.name, present.name);
  };
  require(rank, world_size);
  require(world_size, rank);
  if (launcher.needs_local_rank) require(local_rank, rank);
  LaunchEnvironment found;
  found.launcher = launcher.name;
  found.world_size = number(world_size, 1, kMost);
  found.rank = number(rank, 0, found.world_size - 1);
  found.local_world_size =
      local_world_size.value.empty() ? -1 : number(local_world_size, 1, found.world_size);
  const int most_local = found.local_world_size > 0 ? found.local_world_size : found.world_size;
  found.local_rank = local_rank.value.empty() ? -1 : number(local_rank, 0, most_local - 1);
  for (const std::string& name : words(launcher.job))
    if (const auto job = variables.find(name); job != variables.end()) found.nonce += job->second + ".";
  found.description = fmt::format(
      "{}: rank {} of {} ({}, {}), local rank {}", launcher.name, found.rank, found.world_size, rank.name,
      world_size.name, found.local_rank < 0 ? std::string("unknown") : std::to_string(found.local_rank));
  return found;
}

// Where all processes of a job can guess the same port, and two jobs on a machine rarely do.
int port_of_job(const std::string& job) { return 20000 + static_cast<int>(xxh3_64(job) % 12000); }

void derive_init(LaunchEnvironment& found, const Variables& variables) {
  const Setting host = look_up(variables, "MASTER_ADDR"), port = look_up(variables, "MASTER_PORT");
  if (found.launcher == "torchrun") {
    for (const Setting& setting : {host, port})
      if (setting.value.empty())
        fail_usage(
            "environment variable {} is missing: torchrun sets it; set it to where rank 0 is, or set "
            "SINKLORA_INIT",
            setting.name);
    // torchrun's own agent may listen on MASTER_PORT.
    found.init = fmt::format("tcp://{}:{}", host.value, number(port, 1, 65534) + 1);
  } else if (!host.value.empty()) {
    found.init = fmt::format("tcp://{}:{}", host.value,
                             port.value.empty() ? port_of_job(found.nonce) : number(port, 1, 65535));
  } else if (const Setting nodes = look_up(variables, "SLURM_STEP_NODELIST SLURM_JOB_NODELIST");
             found.launcher == "Slurm" && !nodes.value.empty()) {
    found.init = fmt::format("tcp://{}:{}", first_slurm_host(nodes.value), port_of_job(found.nonce));
  } else if (found.local_world_size == found.world_size && !found.nonce.empty()) {
    found.init = fmt::format("tcp://127.0.0.1:{}", port_of_job(found.nonce));
  }
}

// Slurm may have started the other launcher, once per node; among the others only one can be the innermost.
void check_contradictions(const LaunchEnvironment& found, const Launcher& chosen,
                          const Variables& variables) {
  if (found.launcher == "sinklora") return;
  for (const Launcher& other : kLaunchers) {
    if (&other == &chosen || std::string_view(other.name) == "Slurm" || !is_present(other, variables))
      continue;
    const Setting rank = look_up(variables, other.rank), size = look_up(variables, other.world_size);
    if (rank.value == std::to_string(found.rank) && size.value == std::to_string(found.world_size)) continue;
    fail_usage(
        "{} but {}='{}' and {}='{}' of {} say otherwise; unset those of the launcher that did not start this "
        "process",
        found.description, rank.name, rank.value, size.name, size.value, other.name);
  }
}

}  // namespace

Variables process_variables() {
  Variables variables;
  for (char** entry = environ; *entry; ++entry) {
    const std::string line = *entry;
    if (const size_t equals = line.find('='); equals != std::string::npos)
      variables[line.substr(0, equals)] = line.substr(equals + 1);
  }
  return variables;
}

LaunchEnvironment detect_launch(const Variables& variables) {
  LaunchEnvironment found;
  found.description = "no launcher: one process";
  for (const Launcher& launcher : kLaunchers) {
    if (!is_present(launcher, variables)) continue;
    found = read(launcher, variables);
    check_contradictions(found, launcher, variables);
    const Setting init = look_up(variables, "SINKLORA_INIT"), nonce = look_up(variables, "SINKLORA_NONCE"),
                  listener = look_up(variables, "SINKLORA_LISTEN_FD");
    if (!nonce.value.empty()) found.nonce = nonce.value;
    if (!init.value.empty())
      found.init = init.value;
    else
      derive_init(found, variables);
    if (!listener.value.empty() && found.launcher == "sinklora" && found.rank == 0)
      found.listen_descriptor = number(listener, 3, std::numeric_limits<int>::max());
    break;
  }
  return found;
}

Rendezvous rendezvous_of(const LaunchEnvironment& launch, const std::string& version) {
  if (launch.world_size > 1 && launch.init.empty())
    fail_usage(
        "{} does not tell where rank 0 is; set SINKLORA_INIT=tcp://HOST:PORT of rank 0, or file:///PATH on a "
        "file system that all see",
        launch.launcher);
  Rendezvous rendezvous;
  rendezvous.rank = launch.rank;
  rendezvous.world_size = launch.world_size;
  rendezvous.init = launch.init;
  rendezvous.nonce = launch.nonce;
  rendezvous.version = version;
  rendezvous.listen_descriptor = launch.listen_descriptor;
  rendezvous.host_listens = launch.launcher == "sinklora" && launch.init.starts_with("tcp://127.0.0.1:");
  return rendezvous;
}

std::string first_slurm_host(const std::string& node_list) {
  const size_t bracket = node_list.find('['), comma = node_list.find(',');
  if (bracket == std::string::npos || comma < bracket) return node_list.substr(0, comma);
  const size_t end = node_list.find_first_of(",-]", bracket);
  const size_t close = node_list.find(']', bracket);
  if (end == std::string::npos || close == std::string::npos)
    fail_usage(
        "environment variable SLURM_JOB_NODELIST='{}' cannot be read; set SINKLORA_INIT=tcp://HOST:PORT",
        node_list);
  const size_t after_bracket = node_list.find(',', close);
  return node_list.substr(0, bracket) + node_list.substr(bracket + 1, end - bracket - 1) +
         node_list.substr(close + 1,
                          after_bracket == std::string::npos ? after_bracket : after_bracket - close - 1);
}

}  // namespace sinklora
