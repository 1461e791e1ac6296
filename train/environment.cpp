#include "train/environment.h"

#include <hdf5.h>
#include <omp.h>

#include "base/error.h"
#include "base/files.h"
#include "base/machine.h"
#include "base/version.h"
#include "comm/nccl_communicator.h"
#include "kernels/cpu/blas_info.h"
#include "kernels/cuda_backend.h"

namespace sinklora {

Json environment() {
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) < 0) fail_internal("HDF5 does not tell its version");
  const Machine machine = look_at_machine();
  const CudaDescription cuda = describe_cuda();
  const auto free_disk = free_bytes(".");
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
          {"free_disk_bytes", free_disk ? Json(*free_disk) : Json()},
          {"cuda", cuda.version},
          {"gpus", cuda.devices},
          {"nccl", nccl_version()},
          {"settings", settings}};
}

}  // namespace sinklora
