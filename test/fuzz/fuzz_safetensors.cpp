// A safetensors file: two bytes that choose the size of the file, then its JSON header; and, read as a whole,
// the file that the same bytes are. What is accepted tiles the file exactly and can be read; all else is an
// Error(input).
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "base/error.h"
#include "model/safetensors.h"

using namespace sinklora;

namespace {

template <class Call>
void expect_input_errors_only(Call call) {
  try {
    call();
  } catch (const Error& error) {
    if (error.code != ExitCode::input) std::abort();
  }
}

void check_header(std::string_view header, int64_t tensor_bytes) {
  const int64_t file_size = 8 + static_cast<int64_t>(header.size()) + tensor_bytes;
  const std::vector<TensorInfo> found = parse_safetensors_header(header, file_size, "fuzz");
  int64_t end = 8 + static_cast<int64_t>(header.size());
  for (const TensorInfo& info : found) {
    if (info.offset != end || info.elements() < 0) std::abort();
    if (info.foreign_dtype.empty() && info.bytes != info.elements() * size_of(info.dtype)) std::abort();
    end += info.bytes;
  }
  if (end != file_size) std::abort();
}

void check_file(const uint8_t* data, size_t size) {
  static const int descriptor = ::memfd_create("fuzz", 0);
  if (::ftruncate(descriptor, 0) != 0 || ::pwrite(descriptor, data, size, 0) != static_cast<ssize_t>(size))
    std::abort();
  const SafetensorsFile file(fmt::format("/proc/self/fd/{}", descriptor));
  std::vector<float> values;
  for (const TensorInfo& info : file.tensors()) {
    if (file.find(info.name) != &info) std::abort();
    values.resize(static_cast<size_t>(info.bytes == 0 ? 0 : info.elements()));
    expect_input_errors_only([&] { file.read(info, 0, values); });  // integers and foreign types
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  expect_input_errors_only([&] { check_file(data, size); });
  if (size < 2) return 0;
  const std::string_view header(reinterpret_cast<const char*>(data + 2), size - 2);
  expect_input_errors_only([&] { check_header(header, data[0] + 256 * data[1]); });
  return 0;
}
