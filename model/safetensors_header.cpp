// The JSON header of a safetensors file. It comes from strangers, so it is read event by event against the
// one schema that is allowed: no document tree is built, nothing nests deeper than the schema, the first
// wrong token ends it.
#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "model/safetensors.h"

namespace sinklora {
namespace {

constexpr size_t kMaxDimensions = 64;

struct StoredType {
  std::string_view name;
  int64_t bits;
  bool ours;
  DType dtype = DType::f32;
};
constexpr std::array<StoredType, 22> kStoredTypes{{
    {"BOOL", 8, false},
    {"F4", 4, false},
    {"F6_E2M3", 6, false},
    {"F6_E3M2", 6, false},
    {"U8", 8, false},
    {"I8", 8, false},
    {"F8_E5M2", 8, false},
    {"F8_E4M3", 8, false},
    {"F8_E8M0", 8, false},
    {"F8_E4M3FNUZ", 8, false},
    {"F8_E5M2FNUZ", 8, false},
    {"I16", 16, false},
    {"U16", 16, false},
    {"F16", 16, true, DType::f16},
    {"BF16", 16, true, DType::bf16},
    {"I32", 32, true, DType::i32},
    {"U32", 32, false},
    {"F32", 32, true, DType::f32},
    {"C64", 64, false},
    {"F64", 64, true, DType::f64},
    {"I64", 64, true, DType::i64},
    {"U64", 64, false},
}};

// A name from the file, short enough for one line of a message.
std::string shown(const std::string& name) {
  constexpr size_t kLongest = 80;
  return Json(name.size() <= kLongest ? name : name.substr(0, kLongest) + "...")
      .dump(-1, ' ', true, Json::error_handler_t::replace);
}

struct RawTensor {
  std::string name;
  const StoredType* type = nullptr;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(const std::string& source) : source_(source) {}

  std::vector<RawTensor> tensors;

  bool null() override { wrong("null"); }
  bool boolean(bool) override { wrong("a boolean"); }
  bool number_float(number_float_t, const string_t& text) override {
    wrong(fmt::format("the number {}", text));
  }
  bool number_integer(number_integer_t) override { wrong("a negative number"); }  // the library's -0 as well
  bool binary(binary_t&) override { wrong("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail_input("{}: tensor {}: dimension {} overflows 64 bits", source_, shown(name_), value);
      if (tensors.back().shape.size() == kMaxDimensions)
        fail_input("{}: tensor {}: more than {} dimensions", source_, shown(name_), kMaxDimensions);
      tensors.back().shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::offsets && offsets_ < 2) {
      (offsets_++ == 0 ? tensors.back().begin : tensors.back().end) = value;
    } else {
      wrong(fmt::format("the number {}", value));
    }
    return true;
  }

  bool string(string_t& text) override {
    if (place_ == Place::metadata) return true;  // nothing in it matters here
    if (place_ == Place::tensor && key_ == "dtype") {
      const auto found =
          std::find_if(kStoredTypes.begin(), kStoredTypes.end(), [&](auto& t) { return t.name == text; });
      if (found == kStoredTypes.end())
        fail_input("{}: tensor {}: unknown dtype {}; this is no type of the safetensors format", source_,
                   shown(name_), shown(text));
      tensors.back().type = &*found;
    } else {
      wrong(fmt::format("the string {}", shown(text)));
    }
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::start) {
      place_ = Place::top;
    } else if (place_ == Place::top && key_ == "__metadata__") {
      place_ = Place::metadata;
    } else if (place_ == Place::top) {
      place_ = Place::tensor;
      name_ = key_;
      tensors.push_back({name_, nullptr, {}, 0, 0});
    } else {
      wrong("an object");
    }
    keys_.clear();
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor)
      for (const char* wanted : {"dtype", "shape", "data_offsets"})
        if (!keys_.contains(wanted)) fail_input("{}: tensor {}: no \"{}\"", source_, shown(name_), wanted);
    place_ = place_ == Place::top ? Place::end : Place::top;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::tensor && key_ == "shape")
      place_ = Place::shape;
    else if (place_ == Place::tensor && key_ == "data_offsets")
      place_ = Place::offsets;
    else
      wrong("an array");
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offsets && offsets_ != 2)
      fail_input("{}: tensor {}: data_offsets has {} numbers, wanted 2", source_, shown(name_), offsets_);
    place_ = Place::tensor;
    offsets_ = 0;
    return true;
  }

  bool key(string_t& key) override {
    auto& seen = place_ == Place::top ? names_ : keys_;
    if (!seen.insert(key).second) fail_input("{}: {}the key {} occurs twice", source_, where(), shown(key));
    if (place_ == Place::tensor && key != "dtype" && key != "shape" && key != "data_offsets")
      fail_input("{}: {}unknown key {}; wanted dtype, shape and data_offsets", source_, where(), shown(key));
    key_ = std::move(key);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& error) override {
    fail_input("{}: the header is not valid JSON at its byte {}: {}", source_, position, error.what());
  }

 private:
  enum class Place { start, top, metadata, tensor, shape, offsets, end };

  std::string where() const {
    if (place_ == Place::metadata) return "__metadata__: ";
    const bool inside = place_ == Place::tensor || place_ == Place::shape || place_ == Place::offsets;
    return inside ? fmt::format("tensor {}: ", shown(name_)) : "";
  }
  [[noreturn]] void wrong(const std::string& what) const {
    const char* wanted = "an object for each tensor";
    if (place_ == Place::metadata)
      wanted = "strings only";
    else if (place_ == Place::start)
      wanted = "an object";
    else if (place_ == Place::shape || place_ == Place::offsets)
      wanted = "whole numbers from 0, two for data_offsets";
    else if (place_ == Place::tensor)
      wanted = "a string for dtype, arrays for shape and data_offsets";
    else if (key_ == "__metadata__")
      wanted = "an object of strings";
    fail_input("{}: {}{} found at key {}, wanted {}", source_, where(), what, shown(key_), wanted);
  }

  const std::string& source_;
  Place place_ = Place::start;
  std::string key_, name_;
  std::set<std::string> names_, keys_;  // seen at the top, and in the object that is open
  int offsets_ = 0;
};

// Bytes that a tensor of this shape and type fills.
int64_t bytes_of(const RawTensor& tensor, const std::string& source) {
  int64_t bits = tensor.type->bits;
  int64_t count = 1;
  for (const int64_t dim : tensor.shape)
    if (__builtin_mul_overflow(count, dim, &count))
      fail_input("{}: tensor {}: the product of its shape overflows 64 bits", source, shown(tensor.name));
  if (__builtin_mul_overflow(bits, count, &bits))
    fail_input("{}: tensor {}: its size in bits overflows 64 bits", source, shown(tensor.name));
  if (bits % 8 != 0)
    fail_input("{}: tensor {}: {} elements of {} do not fill whole bytes", source, shown(tensor.name), count,
               tensor.type->name);
  return bits / 8;
}

// The tensors must tile the bytes [0, size) behind the header, in the order in which they are given.
void check_tiling(const std::vector<RawTensor>& tensors, uint64_t size, const std::string& source) {
  uint64_t filled = 0;
  for (const RawTensor& tensor : tensors) {
    const std::string name = shown(tensor.name);
    if (tensor.end < tensor.begin)
      fail_input("{}: tensor {}: ends at {} before it begins at {}", source, name, tensor.end, tensor.begin);
    if (tensor.begin < filled)
      fail_input("{}: tensor {}: begins at {} and overlaps the tensor before it, which ends at {}", source,
                 name, tensor.begin, filled);
    if (tensor.begin > filled)
      fail_input("{}: tensor {}: begins at {} and leaves a hole after {}", source, name, tensor.begin,
                 filled);
    if (tensor.end > size)
      fail_input("{}: tensor {}: ends at {}, but the file holds {} bytes of tensors; it is truncated", source,
                 name, tensor.end, size);
    const int64_t wanted = bytes_of(tensor, source);
    if (tensor.end - tensor.begin != static_cast<uint64_t>(wanted))
      fail_input("{}: tensor {}: {} bytes of file for a {} of shape [{}], which fills {}", source, name,
                 tensor.end - tensor.begin, tensor.type->name, fmt::join(tensor.shape, ", "), wanted);
    filled = tensor.end;
  }
  if (filled != size)
    fail_input(
        "{}: {} bytes after the last tensor belong to none; the file was appended to or is two files in one",
        source, size - filled);
}

}  // namespace

std::vector<TensorInfo> parse_safetensors_header(std::string_view json, int64_t file_size,
                                                 const std::string& source) {
  const int64_t header_end = 8 + static_cast<int64_t>(json.size());
  if (file_size < header_end)
    fail_input("{}: header length {} reaches beyond the end of the file, {} bytes", source, json.size(),
               file_size);
  // The JSON library would skip a byte order mark and stop at NUL as if the text ended there.
  const size_t first = json.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || json[first] != '{')
    fail_input("{}: the header does not begin with '{{'; this is not a safetensors file", source);
  if (json.find('\0') != std::string_view::npos) fail_input("{}: the header holds a NUL byte", source);
  HeaderReader reader(source);
  Json::sax_parse(json.begin(), json.end(), &reader);

  auto& raw = reader.tensors;
  std::sort(raw.begin(), raw.end(), [](const RawTensor& a, const RawTensor& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_tiling(raw, static_cast<uint64_t>(file_size - header_end), source);
  std::vector<TensorInfo> tensors;
  for (RawTensor& tensor : raw) {
    TensorInfo info;
    info.name = std::move(tensor.name);
    info.dtype = tensor.type->dtype;
    info.shape = std::move(tensor.shape);
    info.offset = header_end + static_cast<int64_t>(tensor.begin);
    info.bytes = static_cast<int64_t>(tensor.end - tensor.begin);
    if (!tensor.type->ours) info.foreign_dtype = tensor.type->name;
    tensors.push_back(std::move(info));
  }
  return tensors;
}

}  // namespace sinklora
