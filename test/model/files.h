// Building blocks of the tests of model files.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "model/hf_directory.h"

namespace sinklora::test {

// What `call` throws as Error, as text; "" when it does not throw. Any other exception is a failure of the
// test.
template <class Call>
std::string error_of(Call call, ExitCode code = ExitCode::input) {
  try {
    call();
  } catch (const Error& error) {
    return error.code == code ? error.what() : std::string("wrong exit code: ") + error.what();
  }
  return "";
}

inline void check_contains(const std::string& text, const std::string& part) {
  CHECK_MESSAGE(text.find(part) != std::string::npos, text);
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string length_prefix(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}
// A safetensors file of this header and this many zero bytes.
inline std::string container(const std::string& header, size_t bytes) {
  return length_prefix(header.size()) + header + std::string(bytes, '\0');
}

inline HostTensor host_tensor(const std::string& name, std::vector<int64_t> shape,
                              const std::vector<float>& values, DType dtype = DType::f32) {
  HostTensor tensor{name, dtype, std::move(shape), {}};
  append_as(dtype, values, tensor.data);
  return tensor;
}

inline std::vector<float> floats_of(const HostTensor& tensor) {
  std::vector<float> values(tensor.data.size() / sizeof(float));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

inline std::vector<float> floats_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.find(name);
  if (!info) fail_internal("no tensor {}", name);
  std::vector<float> values(static_cast<size_t>(info->elements()));
  file.read(*info, 0, values);
  return values;
}

inline std::vector<std::byte> bytes_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.find(name);
  if (!info) fail_internal("no tensor {}", name);
  std::vector<std::byte> bytes(static_cast<size_t>(info->bytes));
  file.read_bytes(*info, bytes);
  return bytes;
}

// As stored: what reading widens, writing makes again.
inline std::vector<std::byte> bytes_of(const ModelDirectory& model, const std::string& name) {
  const TensorInfo& info = model.info(name);
  std::vector<float> values(static_cast<size_t>(info.elements()));
  model.read(name, 0, values);
  std::vector<std::byte> bytes;
  append_as(info.dtype, values, bytes);
  return bytes;
}

}  // namespace sinklora::test
