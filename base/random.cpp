#include "base/random.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/hash.h"

namespace sinklora {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c;
}

RandomStream::RandomStream(uint64_t seed, std::string_view name)
    : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, stream_(xxh3_64(name)) {}

uint64_t RandomStream::bits(uint64_t index) const {
  const auto r = philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                         static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                        key_);
  return r[0] | (uint64_t{r[1]} << 32);
}

double RandomStream::uniform(uint64_t index) const {
  return static_cast<double>(bits(index) >> 11) * 0x1p-53;
}

double RandomStream::normal(uint64_t index) const {
  const auto r = philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                         static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                        key_);
  const double u = (static_cast<double>(r[0]) + 0.5) * 0x1p-32;  // in (0, 1): the logarithm stays finite
  const double v = static_cast<double>(r[1]) * 0x1p-32;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

uint64_t RandomStream::below(uint64_t index, uint64_t bound) const {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(bits(index)) * bound) >> 64);
}

Permutation::Permutation(uint64_t size, uint64_t seed, uint64_t epoch)
    : size_(size), key_(RandomStream(seed, "epoch permutation").bits(epoch)), half_bits_(1) {
  if (size == 0) fail_internal("a permutation of nothing was asked for");
  while (half_bits_ < 32 && (uint64_t{1} << (2 * half_bits_)) < size) ++half_bits_;
}

uint64_t Permutation::operator()(uint64_t index) const {
  if (index >= size_) fail_internal("permutation of {} elements asked for element {}", size_, index);
  const uint32_t mask = half_bits_ == 32 ? ~uint32_t{0} : (uint32_t{1} << half_bits_) - 1;
  do {
    auto left = static_cast<uint32_t>(index >> half_bits_) & mask;
    auto right = static_cast<uint32_t>(index) & mask;
    for (uint32_t round = 0; round < 4; ++round) {
      const auto r =
          philox({right, round, 0, 0}, {static_cast<uint32_t>(key_), static_cast<uint32_t>(key_ >> 32)});
      const uint32_t next = left ^ (r[0] & mask);
      left = right;
      right = next;
    }
    index = (uint64_t{left} << half_bits_) | right;
  } while (index >= size_);  // cycle walking: at most four tries on average
  return index;
}

}  // namespace sinklora
