#include "data/token_stream.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "base/foreign_format.h"

namespace sinklora {

static_assert(std::endian::native == std::endian::little, "token streams and HDF5 rows are read as they lie");

namespace {

// Whether it may be the upper half of a token of 32 bits: no vocabulary has more than 2^20 ids, and labels that are
// masked are small negative numbers.
bool may_be_upper(uint16_t half) { return half < 16 || half == 0xffff; }

// A stream without a header says nothing of its width. Wider tokens read as uint16 are, every second time, the
// upper half of an id. In a text what cannot be one is as frequent at these places as at the others.
void refuse_wide_tokens(const ReadFile& file) {
  constexpr int64_t kPlaces = 16, kRead = 1024;  // a file shorter than one read says too little
  std::vector<uint16_t> halves;
  const int64_t step = std::max(file.size() / kPlaces / 8, kRead / 4) * 8;
  for (int64_t offset = 0; offset + 2 * kRead <= file.size(); offset += step) {
    const size_t begin = halves.size();
    halves.resize(begin + kRead);
    file.read(offset, std::as_writable_bytes(std::span(halves).subspan(begin)));
  }
  const auto size = static_cast<int64_t>(halves.size());
  const auto count = [&](size_t first, size_t every) {  // of what an upper half cannot be
    int64_t found = 0;
    for (size_t i = first; i < halves.size(); i += every) found += !may_be_upper(halves[i]);
    return found;
  };
  const int64_t lower = count(0, 2), upper = count(1, 2);
  if (lower < std::max<int64_t>(size / 64, 1) || 8 * upper > lower) return;  // padding alone, or uint16
  fail_input(
      "{}: looks like tokens of {}, but a stream without a header is read as uint16; convert it to uint16, "
      "or to uint32 behind llm.c's header (256 int32: 20240801, 7, the number of tokens, then zeros)",
      file.path().string(), count(2, 4) == 0 ? "int64" : "uint32");
}

}  // namespace

TokenStream::TokenStream(const std::filesystem::path& path) : file_(path) {
  std::array<int32_t, 256> header{};
  const bool long_enough = file_.read_some(0, std::as_writable_bytes(std::span(header))) == sizeof(header);
  const bool narrow_tokens = header[0] == 20240520, wide_tokens = header[0] == 20240801;
  if (long_enough && (narrow_tokens || wide_tokens)) {
    if (header[1] != (narrow_tokens ? 1 : 7))
      fail_input("{}: llm.c tokens of version {}; version {} is read", path.string(), header[1],
                 narrow_tokens ? 1 : 7);
    header_bytes_ = sizeof(header);
    token_bytes_ = narrow_tokens ? 2 : 4;
    if (header[2] < 0 || header[2] > (file_.size() - header_bytes_) / token_bytes_)
      fail_input("{}: its header says {} tokens, but there are {}", path.string(), header[2],
                 (file_.size() - header_bytes_) / token_bytes_);
    size_ = header[2];
  } else {
    refuse_foreign_format({reinterpret_cast<const char*>(header.data()), sizeof(header)}, path.string());
    refuse_wide_tokens(file_);
    size_ = file_.size() / token_bytes_;
  }
  rest_bytes_ = file_.size() - header_bytes_ - size_ * token_bytes_;
}

std::vector<int32_t> TokenStream::read(int64_t offset, int64_t count, int64_t vocab_size) const {
  if (offset < 0 || count < 0 || offset > size_ - count)
    fail_internal("{}: tokens {} .. {} of {} asked for", path().string(), offset, offset + count, size_);
  std::vector<std::byte> bytes(static_cast<size_t>(count * token_bytes_));
  file_.read(header_bytes_ + offset * token_bytes_, bytes);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) {
    uint32_t id = 0;
    std::memcpy(&id, bytes.data() + i * static_cast<size_t>(token_bytes_), static_cast<size_t>(token_bytes_));
    if (id > INT32_MAX || (vocab_size > 0 && id >= static_cast<uint64_t>(vocab_size)))
      fail_input(
          "{}: token {} at position {} is outside the model's vocabulary of {}; was it written with the "
          "model's own tokenizer?",
          path().string(), id, offset + static_cast<int64_t>(i), vocab_size);
    ids[i] = static_cast<int32_t>(id);
  }
  return ids;
}

void TokenStream::expect_whole() const {
  if (size_ == 0) fail_input("{}: holds no token", path().string());
  if (rest_bytes_ % token_bytes_ != 0)
    fail_input("{}: ends inside a token of {} bytes; it is cut off, or no token stream", path().string(),
               token_bytes_);
}

std::string TokenStream::describe() const {
  std::string text = header_bytes_ > 0 ? fmt::format("llm.c token stream of uint{}", 8 * token_bytes_)
                                       : std::string("headerless token stream of uint16");
  text += fmt::format(", {} tokens", size_);
  if (rest_bytes_ > 0) text += fmt::format(", {} bytes behind them left out", rest_bytes_);
  return text;
}

}  // namespace sinklora
