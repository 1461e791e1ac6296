// The safetensors container, read as an untrusted file and written strictly.
// Format: 8 bytes little-endian N, N bytes of JSON, then the tensors, tiled without hole or overlap.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/files.h"
#include "kernels/dtype.h"

namespace sinklora {

struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // of its first byte in the file
  int64_t bytes = 0;
  int64_t elements() const {
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    return count;
  }
};

class SafetensorsFile {
 public:
  // Reads and checks the whole header before anything else; throws Error(input) that names file, tensor and defect.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // ordered by offset
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const TensorInfo* find(const std::string& name) const;
  void read_bytes(const TensorInfo& tensor, std::span<std::byte> out) const;  // as stored
  // Elements [begin, begin + out.size()) converted to float or double from any float type.
  void read(const TensorInfo& tensor, int64_t begin, std::span<float> out) const;

 private:
  ReadFile file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

// A tensor in host memory on its way into or out of a file.
struct HostTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};

// A tensor to be written whose bytes are produced when their turn comes, so that a model larger than memory can be
// written. `write` calls its argument with consecutive pieces that add up to the tensor's bytes.
struct TensorSource {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::function<void(const std::function<void(std::span<const std::byte>)>&)> write;
};

// Writes atomically (temporary file, fsync, rename): header padded to 8 bytes, tensors by descending alignment and
// then by name, "__metadata__" {"format": "pt"} plus `metadata`.
void write_safetensors(const std::filesystem::path& path, const std::vector<HostTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace sinklora
