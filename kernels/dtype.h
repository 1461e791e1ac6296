// Element types, and bfloat16 by hand so that the CPU code needs no vendor header.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace sinklora {

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32 };

constexpr int64_t size_of(DType type) {
  switch (type) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
  }
  return 0;
}

constexpr std::string_view name_of(DType type) {
  constexpr std::string_view names[] = {"f64", "f32", "bf16", "f16", "i64", "i32"};
  return names[static_cast<int>(type)];
}

// The upper half of a float. Conversion rounds to nearest even and keeps NaN a NaN.
struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const auto word = std::bit_cast<uint32_t>(value);
    const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits =
        static_cast<uint16_t>(is_nan ? (word >> 16) | 0x40u : (word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};
static_assert(sizeof(BFloat16) == 2);

float half_to_float(uint16_t bits);   // IEEE binary16, subnormals included
uint16_t float_to_half(float value);  // rounds to nearest even

}  // namespace sinklora
