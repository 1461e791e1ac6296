// Writes HDF5 files that our writer would not write.
#pragma once

#include <hdf5.h>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sinklora::test {

struct RawShard {
  enum class Type { int32, int64, uint32, float32 };
  enum class Detour { none, soft_link, external_link, external_storage };

  std::vector<int64_t> shape;
  std::vector<int32_t> values{};  // empty: nothing is written
  std::vector<std::pair<std::string, int64_t>> attributes{};
  Type type = Type::int32;
  std::string schema{};
  std::string name = "data";
  Detour detour = Detour::none;
  int filter = 0;  // of one chunk, by number; optional, so that it may be missing while this is written

  void write(const std::filesystem::path& path) const {
    const auto check = [](auto result) {
      if (result < 0) throw std::runtime_error("cannot write a test file");
      return result;
    };
    const hid_t types[] = {H5T_STD_I32LE, H5T_STD_I64LE, H5T_STD_U32LE, H5T_IEEE_F32LE};
    const hid_t file = check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
    const std::vector<hsize_t> extent(shape.begin(), shape.end());
    const hid_t space = check(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr));
    const hid_t list = check(H5Pcreate(H5P_DATASET_CREATE));
    if (detour == Detour::external_storage) check(H5Pset_external(list, "/etc/hostname", 0, H5F_UNLIMITED));
    if (filter > 0) {
      check(H5Pset_chunk(list, static_cast<int>(extent.size()), extent.data()));
      check(H5Pset_filter(list, filter, H5Z_FLAG_OPTIONAL, 0, nullptr));
    }
    const std::string real = detour == Detour::external_storage ? "data" : name;
    const hid_t data = check(
        H5Dcreate2(file, real.c_str(), types[static_cast<int>(type)], space, H5P_DEFAULT, list, H5P_DEFAULT));
    if (!values.empty() && detour == Detour::none)
      check(H5Dwrite(data, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()));
    if (detour == Detour::soft_link) check(H5Lcreate_soft("/real", file, "data", H5P_DEFAULT, H5P_DEFAULT));
    if (detour == Detour::external_link)
      check(H5Lcreate_external("other.h5", "/real", file, "data", H5P_DEFAULT, H5P_DEFAULT));
    const hid_t scalar = check(H5Screate(H5S_SCALAR));
    for (const auto& [key, value] : attributes) {
      const hid_t id = check(H5Acreate2(file, key.c_str(), H5T_STD_I64LE, scalar, H5P_DEFAULT, H5P_DEFAULT));
      check(H5Awrite(id, H5T_NATIVE_INT64, &value));
      check(H5Aclose(id));
    }
    if (!schema.empty()) {
      const hid_t text = check(H5Tcopy(H5T_C_S1));
      check(H5Tset_size(text, schema.size() + 1));
      const hid_t id = check(H5Acreate2(file, "schema", text, scalar, H5P_DEFAULT, H5P_DEFAULT));
      check(H5Awrite(id, text, schema.c_str()));
      check(H5Aclose(id));
      check(H5Tclose(text));
    }
    check(H5Sclose(scalar));
    check(H5Dclose(data));
    check(H5Pclose(list));
    check(H5Sclose(space));
    check(H5Fclose(file));
  }
};

}  // namespace sinklora::test
