#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "base/error.h"
#include "base/foreign_format.h"
#include "base/json.h"

namespace sinklora {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the bytes of a safetensors file are used as they lie");

constexpr size_t kPieceBytes = size_t{1} << 20;

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

float element_as_float(DType dtype, const std::byte* at) {
  switch (dtype) {
    case DType::f64:
      return static_cast<float>(load<double>(at));
    case DType::f32:
      return load<float>(at);
    case DType::bf16:
      return static_cast<float>(load<BFloat16>(at));
    case DType::f16:
      return half_to_float(load<uint16_t>(at));
    case DType::i64:
    case DType::i32:
      break;
  }
  fail_internal("an integer tensor was read as float");
}

// Header and file agree before the first byte of JSON is allocated.
std::vector<TensorInfo> read_header(const ReadFile& file) {
  const std::string source = file.path().string();
  if (file.size() < 8) fail_input("{}: {} bytes are too few for a safetensors file", source, file.size());
  std::string begin(std::min(kGitLfsPointer.size(), static_cast<size_t>(file.size())), '\0');
  file.read(0, std::as_writable_bytes(std::span(begin)));
  if (begin == kGitLfsPointer) refuse_foreign_format(begin, source);
  uint64_t length = 0;
  std::memcpy(&length, begin.data(), sizeof length);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeader))
    fail_input("{}: header length {} is larger than {} bytes; this is not a safetensors file", source, length,
               kMaxSafetensorsHeader);
  if (length > static_cast<uint64_t>(file.size() - 8))
    fail_input("{}: header length {} reaches beyond the end of the file, {} bytes", source, length,
               file.size());
  std::string json(static_cast<size_t>(length), '\0');
  file.read(8, std::as_writable_bytes(std::span(json)));
  return parse_safetensors_header(json, file.size(), source);
}

// Name and rank in the order by which the reference sorts: descending.
struct WrittenType {
  std::string_view name;
  int order;
};
WrittenType written_type(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return {"F16", 0};
    case DType::bf16:
      return {"BF16", 1};
    case DType::i32:
      return {"I32", 2};
    case DType::f32:
      return {"F32", 3};
    case DType::f64:
      return {"F64", 4};
    case DType::i64:
      return {"I64", 5};
  }
  fail_internal("a tensor type without a name in the safetensors format");
}

int64_t bytes_of(const TensorSource& tensor) {
  int64_t bytes = size_of(tensor.dtype);
  for (const int64_t dim : tensor.shape)
    if (dim < 0 || __builtin_mul_overflow(bytes, dim, &bytes))
      fail_internal("tensor {} to be written: impossible shape [{}]", tensor.name,
                    fmt::join(tensor.shape, ", "));
  return bytes;
}

std::string header_text(const std::vector<const TensorSource*>& tensors, const std::filesystem::path& path) {
  std::string text = R"({"__metadata__":{"format":"pt"})";  // transformers refuses files without it
  int64_t offset = 0;
  for (const TensorSource* tensor : tensors) {
    const int64_t end = offset + bytes_of(*tensor);
    text += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        Json(tensor->name).dump(), written_type(tensor->dtype).name,
                        fmt::join(tensor->shape, ","), offset, end);
    offset = end;
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (static_cast<int64_t>(text.size()) > kMaxSafetensorsHeader)
    fail_internal("{}: a header of {} bytes is longer than the format allows", path.string(), text.size());
  return text;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), tensors_(read_header(file_)) {
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_[tensors_[i].name] = i;
}

const TensorInfo* SafetensorsFile::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

void SafetensorsFile::read_bytes(const TensorInfo& tensor, std::span<std::byte> out) const {
  if (static_cast<int64_t>(out.size()) != tensor.bytes)
    fail_internal("tensor {}: {} bytes asked for, it has {}", tensor.name, out.size(), tensor.bytes);
  file_.read(tensor.offset, out);
}

bool SafetensorsFile::equal(const TensorInfo& tensor, const SafetensorsFile& file,
                            const TensorInfo& other) const {
  if (tensor.shape != other.shape || tensor.dtype != other.dtype ||
      tensor.foreign_dtype != other.foreign_dtype)
    return false;
  std::vector<std::byte> a, b;
  for (int64_t at = 0; at < tensor.bytes; at += static_cast<int64_t>(kPieceBytes)) {
    const auto count = std::min(kPieceBytes, static_cast<size_t>(tensor.bytes - at));
    a.resize(count), b.resize(count);
    file_.read(tensor.offset + at, a);
    file.file_.read(other.offset + at, b);
    if (a != b) return false;
  }
  return true;
}

void SafetensorsFile::check_range(const TensorInfo& tensor, int64_t begin, size_t count) const {
  if (!tensor.foreign_dtype.empty())
    fail_input(
        "{}: tensor {}: dtype {} cannot be read; wanted BF16, F16, F32 or F64 (quantized weights must be "
        "converted first)",
        path().string(), tensor.name, tensor.foreign_dtype);
  if (tensor.dtype == DType::i64 || tensor.dtype == DType::i32)
    fail_input("{}: tensor {}: dtype {} where floating-point numbers are wanted", path().string(),
               tensor.name, name_of(tensor.dtype));
  const int64_t elements = tensor.elements();
  if (begin < 0 || begin > elements || static_cast<int64_t>(count) > elements - begin)
    fail_internal("tensor {}: elements [{}, +{}) asked for, it has {}", tensor.name, begin, count, elements);
}

void SafetensorsFile::read(const TensorInfo& tensor, int64_t begin, std::span<float> out) const {
  check_range(tensor, begin, out.size());
  const int64_t width = size_of(tensor.dtype);
  if (tensor.dtype == DType::f32)
    return file_.read(tensor.offset + begin * width, std::as_writable_bytes(out));
  std::vector<std::byte> piece(std::min(kPieceBytes, out.size() * static_cast<size_t>(width)));
  for (int64_t at = begin * width; !out.empty();) {
    const size_t count = std::min(out.size(), piece.size() / static_cast<size_t>(width));
    const size_t bytes = count * static_cast<size_t>(width);
    file_.read(tensor.offset + at, std::span(piece).first(bytes));
    for (size_t i = 0; i < count; ++i)
      out[i] = element_as_float(tensor.dtype, &piece[i * static_cast<size_t>(width)]);
    out = out.subspan(count);
    at += static_cast<int64_t>(bytes);
  }
}

void append_as(DType dtype, std::span<const float> values, std::vector<std::byte>& out) {
  const size_t width = static_cast<size_t>(size_of(dtype)), start = out.size();
  out.resize(start + values.size() * width);
  std::byte* to = out.data() + start;
  if (dtype == DType::f32) {
    if (!values.empty()) std::memcpy(to, values.data(), values.size_bytes());
    return;
  }
  if (dtype != DType::bf16 && dtype != DType::f16)
    fail_internal("weights cannot be written as {}", name_of(dtype));
  for (const float value : values) {
    const uint16_t bits = dtype == DType::bf16 ? BFloat16(value).bits : float_to_half(value);
    std::memcpy(to, &bits, sizeof bits);
    to += sizeof bits;
  }
}

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorSource>& tensors) {
  std::vector<const TensorSource*> sorted;
  std::set<std::string> names{"__metadata__"};
  for (const TensorSource& tensor : tensors) {
    if (!names.insert(tensor.name).second)
      fail_internal("{}: tensor name {} cannot be used twice", path.string(), tensor.name);
    sorted.push_back(&tensor);
  }
  std::sort(sorted.begin(), sorted.end(), [](const TensorSource* a, const TensorSource* b) {
    const int order_a = written_type(a->dtype).order, order_b = written_type(b->dtype).order;
    return order_a != order_b ? order_a > order_b : a->name < b->name;
  });
  const std::string header = header_text(sorted, path);
  const uint64_t length = header.size();
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  for (const TensorSource* tensor : sorted) {
    int64_t written = 0;
    tensor->write([&](std::span<const std::byte> piece) {
      file.write(piece);
      written += static_cast<int64_t>(piece.size());
    });
    if (written != bytes_of(*tensor))
      fail_internal("tensor {}: {} bytes were produced, its shape has {}", tensor->name, written,
                    bytes_of(*tensor));
  }
  file.commit();
}

void write_safetensors(const std::filesystem::path& path, const std::vector<HostTensor>& tensors) {
  std::vector<TensorSource> sources;
  for (const HostTensor& tensor : tensors)
    sources.push_back(
        {tensor.name, tensor.dtype, tensor.shape, [&tensor](const auto& sink) { sink(tensor.data); }});
  write_safetensors(path, sources);
}

}  // namespace sinklora
