#include "comm/launch_environment.h"

#include <doctest/doctest.h>

#include <vector>

#include "base/error.h"

using namespace sinklora;

namespace {

Variables with(Variables base, const Variables& more) {
  for (const auto& [name, value] : more)
    if (value == "-")
      base.erase(name);
    else
      base[name] = value;
  return base;
}

const Variables kOwn = {{"SINKLORA_RANK", "1"},       {"SINKLORA_WORLD_SIZE", "2"},
                        {"SINKLORA_LOCAL_RANK", "1"}, {"SINKLORA_LOCAL_WORLD_SIZE", "2"},
                        {"SINKLORA_NONCE", "n"},      {"SINKLORA_INIT", "tcp://127.0.0.1:9"}};
const Variables kTorchrun = {{"RANK", "5"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "node0"},
                             {"MASTER_PORT", "29500"},
                             {"TORCHELASTIC_RUN_ID", "abc"}};
const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "3"},
                            {"OMPI_COMM_WORLD_SIZE", "4"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                            {"PMIX_NAMESPACE", "prterun-1"}};
const Variables kSlurm = {{"SLURM_PROCID", "6"},        {"SLURM_NTASKS", "8"},
                          {"SLURM_LOCALID", "2"},       {"SLURM_JOB_ID", "1234"},
                          {"SLURM_STEP_ID", "0"},       {"SLURM_JOB_NODELIST", "gpu[03-04]"},
                          {"SLURM_STEP_NUM_TASKS", "8"}};
const Variables kHydra = {
    {"PMI_RANK", "2"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "2"}};

}  // namespace

TEST_CASE("each launcher is recognised, with rank, world size, local rank and the place to meet") {
  struct Case {
    Variables variables;
    const char* launcher;
    int rank, world_size, local_rank, local_world_size;
    const char* init;  // "?": any on loopback or the named host
  };
  const std::vector<Case> cases = {
      {{}, "none", 0, 1, 0, 1, ""},
      {{{"PATH", "/bin"}, {"MASTER_PORT", "1"}, {"SINKLORA_INIT", "tcp://a:1"}}, "none", 0, 1, 0, 1, ""},
      {kOwn, "sinklora", 1, 2, 1, 2, "tcp://127.0.0.1:9"},
      {kTorchrun, "torchrun", 5, 8, 1, 4, "tcp://node0:29501"},
      {with(kTorchrun, {{"SINKLORA_INIT", "file:///x"}}), "torchrun", 5, 8, 1, 4, "file:///x"},
      {with(kTorchrun, {{"LOCAL_WORLD_SIZE", "-"}}), "torchrun", 5, 8, 1, -1, "tcp://node0:29501"},
      {kOpenMpi, "Open MPI", 3, 4, 3, 4, "tcp://127.0.0.1:?"},
      {with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}}), "Open MPI",
       3, 4, 1, 2, ""},
      {with(kOpenMpi, {{"MASTER_ADDR", "node7"}, {"MASTER_PORT", "77"}}), "Open MPI", 3, 4, 3, 4,
       "tcp://node7:77"},
      {kHydra, "Hydra", 2, 4, 0, 2, ""},
      {with(kHydra, {{"MPI_LOCALRANKID", "-"}, {"MPI_LOCALNRANKS", "-"}}), "Hydra", 2, 4, -1, -1, ""},
      {kSlurm, "Slurm", 6, 8, 2, -1, "tcp://gpu03:?"},
      // A shell of sbatch: the job's variables, but nothing that srun sets.
      {with(kSlurm, {{"SLURM_STEP_ID", "-"}, {"SLURM_PROCID", "0"}}), "none", 0, 1, 0, 1, ""},
      // One task alone is a program, and --gpus is its own matter.
      {with(kSlurm, {{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}}), "none",
       0, 1, 0, 1, ""},
      // Slurm started the other launcher.
      {with(with(kSlurm, kTorchrun), {{"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "1"}}), "torchrun", 5, 8, 1, 4,
       "tcp://node0:29501"},
      {with(kSlurm, kHydra), "Hydra", 2, 4, 0, 2, ""},
      {with(with(kTorchrun, kSlurm), kOwn), "sinklora", 1, 2, 1, 2, "tcp://127.0.0.1:9"},
  };
  for (const Case& one : cases) {
    const LaunchEnvironment found = detect_launch(one.variables);
    CAPTURE(found.description);
    CHECK(found.launcher == one.launcher);
    CHECK(found.rank == one.rank);
    CHECK(found.world_size == one.world_size);
    CHECK(found.local_rank == one.local_rank);
    CHECK(found.local_world_size == one.local_world_size);
    const std::string init = one.init;
    if (init.ends_with("?"))
      CHECK(found.init.starts_with(init.substr(0, init.size() - 1)));
    else
      CHECK(found.init == init);
  }
  CHECK(detect_launch(kTorchrun).description == "torchrun: rank 5 of 8 (RANK, WORLD_SIZE), local rank 1");
  CHECK(detect_launch(kOwn).nonce == "n");
  // Two jobs meet at different ports, two ranks of a job at one.
  CHECK(detect_launch(kSlurm).init == detect_launch(with(kSlurm, {{"SLURM_PROCID", "1"}})).init);
  CHECK(detect_launch(kSlurm).init != detect_launch(with(kSlurm, {{"SLURM_JOB_ID", "1235"}})).init);
  CHECK(detect_launch(kSlurm).nonce != detect_launch(with(kSlurm, {{"SLURM_STEP_ID", "1"}})).nonce);
}

TEST_CASE("partial, broken and contradicting variables are errors that name the variable") {
  struct Case {
    Variables variables;
    const char* message;
  };
  const std::vector<Case> cases = {
      {{{"WORLD_SIZE", "8"}}, "WORLD_SIZE is set and RANK is not"},
      {{{"RANK", "0"}}, "RANK is set and WORLD_SIZE is not"},
      {{{"RANK", ""}, {"WORLD_SIZE", "8"}}, "WORLD_SIZE is set and RANK is not"},
      {with(kTorchrun, {{"LOCAL_RANK", "-"}}), "LOCAL_RANK is not"},
      {with(kTorchrun, {{"MASTER_ADDR", "-"}}), "MASTER_ADDR is missing"},
      {with(kTorchrun, {{"MASTER_PORT", "-"}}), "MASTER_PORT is missing"},
      {with(kTorchrun, {{"MASTER_PORT", "65535"}}), "MASTER_PORT='65535'"},
      {with(kTorchrun, {{"RANK", "8"}}), "RANK='8': wanted a whole number from 0 to 7"},
      {with(kTorchrun, {{"RANK", "-1"}}), "RANK='-1'"},
      {with(kTorchrun, {{"RANK", "1x"}}), "RANK='1x'"},
      {with(kTorchrun, {{"RANK", "99999999999999999999"}}), "RANK='99999999999999999999'"},
      {with(kTorchrun, {{"WORLD_SIZE", "0"}}), "WORLD_SIZE='0'"},
      {with(kTorchrun, {{"LOCAL_RANK", "4"}}), "LOCAL_RANK='4': wanted a whole number from 0 to 3"},
      {with(kTorchrun, {{"LOCAL_WORLD_SIZE", "9"}}), "LOCAL_WORLD_SIZE='9'"},
      {with(kOpenMpi, {{"OMPI_COMM_WORLD_SIZE", "-"}}), "OMPI_COMM_WORLD_SIZE is not"},
      {with(kHydra, {{"PMI_SIZE", "-"}}), "PMI_SIZE is not"},
      {with(kSlurm, {{"SLURM_LOCALID", "-"}}), "SLURM_LOCALID is not"},
      {with(kSlurm, {{"SLURM_JOB_NODELIST", "gpu[03"}}), "SLURM_JOB_NODELIST='gpu[03'"},
      {with(kOwn, {{"SINKLORA_WORLD_SIZE", "-"}}), "SINKLORA_WORLD_SIZE is not"},
      {with(kOwn, {{"SINKLORA_RANK", "0"}, {"SINKLORA_LISTEN_FD", "2"}}), "SINKLORA_LISTEN_FD='2'"},
      {with(kTorchrun, kOpenMpi), "OMPI_COMM_WORLD_RANK='3'"},
      {with(kOpenMpi, kHydra), "PMI_RANK='2'"},
  };
  for (const Case& one : cases) {
    CAPTURE(one.message);
    CHECK_THROWS_WITH_AS(detect_launch(one.variables), doctest::Contains(one.message), Error);
  }
}

TEST_CASE("what a launcher tells is what the ranks meet by") {
  const Rendezvous own = rendezvous_of(detect_launch(kOwn), "1.0");
  CHECK(own.rank == 1);
  CHECK(own.world_size == 2);
  CHECK(own.init == "tcp://127.0.0.1:9");
  CHECK(own.nonce == "n");
  CHECK(own.version == "1.0");
  CHECK_THROWS_WITH_AS(rendezvous_of(detect_launch(kHydra), "1.0"), doctest::Contains("set SINKLORA_INIT"),
                       Error);
}

TEST_CASE("the first host of Slurm's node lists") {
  CHECK(first_slurm_host("node1") == "node1");
  CHECK(first_slurm_host("node1,node2") == "node1");
  CHECK(first_slurm_host("gpu[003-005,9],login") == "gpu003");
  CHECK(first_slurm_host("gpu[7]") == "gpu7");
  CHECK(first_slurm_host("a,gpu[7-8]") == "a");
  CHECK(first_slurm_host("rack[1-2].example") == "rack1.example");
}
