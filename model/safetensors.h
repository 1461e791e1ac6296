// The safetensors container, read as an untrusted file and written strictly.
// Format: 8 bytes little-endian N, N bytes of JSON, then the tensors, tiled without hole or overlap.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
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
  std::string foreign_dtype{};  // "F8_E4M3": a type that DType has no word for; "" for all others
  int64_t elements() const {
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    return count;
  }
};

inline constexpr int64_t kMaxSafetensorsHeader =
    100'000'000;  // bytes; the reference refuses longer ones as well

// The tensors, ordered by offset. Checks everything that can be checked without their bytes. `json` is what lies
// between the length and the first tensor, `file_size` the size of the whole file, `source` its name for messages.
// Tensors of a foreign type pass: they are refused by name when somebody reads them.
std::vector<TensorInfo> parse_safetensors_header(std::string_view json, int64_t file_size,
                                                 const std::string& source);

class SafetensorsFile {
 public:
  // Reads and checks the whole header before anything else; throws Error(input) that names file, tensor and
  // defect.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // ordered by offset
  const std::filesystem::path& path() const { return file_.path(); }
  const TensorInfo* find(const std::string& name) const;
  void read_bytes(const TensorInfo& tensor, std::span<std::byte> out) const;  // as stored
  // Whether a tensor of another file is the same, to the bit.
  bool equal(const TensorInfo& tensor, const SafetensorsFile& file, const TensorInfo& other) const;
  // Elements [begin, begin + out.size()) converted to float from any floating-point type.
  void read(const TensorInfo& tensor, int64_t begin, std::span<float> out) const;

 private:
  void check_range(const TensorInfo& tensor, int64_t begin, size_t count) const;

  ReadFile file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> by_name_;
};

// A tensor in host memory on its way into or out of a file.
struct HostTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
  // Of a tensor of f32.
  std::span<const float> floats() const {
    return {reinterpret_cast<const float*>(data.data()), data.size() / sizeof(float)};
  }
};

// A tensor to be written whose bytes are produced when their turn comes, so that a model larger than memory
// can be written. `write` calls its argument with consecutive pieces that add up to the tensor's bytes.
struct TensorSource {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::function<void(const std::function<void(std::span<const std::byte>)>&)> write;
};

// Converts floats to f32, bf16 or f16 (to nearest even), back to back as they lie in a file.
void append_as(DType dtype, std::span<const float> values, std::vector<std::byte>& out);

// Writes atomically (temporary file, fsync, rename): header padded to 8 bytes, tensors by descending
// alignment and then by name, "__metadata__" {"format": "pt"}. Byte for byte what the reference writes.
void write_safetensors(const std::filesystem::path& path, const std::vector<HostTensor>& tensors);
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorSource>& tensors);

}  // namespace sinklora
