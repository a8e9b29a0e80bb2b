#pragma once

#include <bit>
#include <cstdint>

namespace volley {

/// An 8-bit float as its bits: sign, 4 bits of exponent (bias 7), 3 bits of mantissa; OCP's E4M3.
/// The largest finite value is 448, the smallest normal one 2^-6, the smallest of all 2^-9. There
/// is no infinity; 0x7f and 0xff are NaNs.
struct E4m3 {
  uint8_t bits;
};
static_assert(sizeof(E4m3) == 1);

inline constexpr float kE4m3Max = 448.0f;

/// Exact.
inline float to_f32(E4m3 value) {
  const uint32_t sign = uint32_t{value.bits & 0x80u} << 24;
  const uint32_t magnitude = value.bits & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude >= 8) return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
  const float small = static_cast<float>(magnitude) * 0x1p-9f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(small));
}

/// Rounds to nearest even; what is beyond 448, infinities included, becomes 448 of its sign, and a
/// NaN stays a NaN of its sign.
inline E4m3 to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint8_t>(sign | 0x7fu)};
  uint32_t code;
  if (magnitude < 0x3c800000u) {  // Below 2^-6: multiples of 2^-9, the unit of 2^14 in f32.
    constexpr float kUnits = 0x1p14f;
    code = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + kUnits) -
           std::bit_cast<uint32_t>(kUnits);
  } else {
    code = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
  }
  return {static_cast<uint8_t>(sign | (code < 0x7eu ? code : 0x7eu))};
}

}  // namespace volley
