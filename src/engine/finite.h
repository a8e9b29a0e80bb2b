#pragma once

#include <cstdint>

#include "kernels/common/types.h"

namespace volley::engine {

/// No element of the row is a NaN or an infinity: none has an exponent of all ones.
inline bool all_finite(const void* row, uint32_t width, kernels::DType dtype) {
  uint32_t bad = 0;
  if (dtype == kernels::DType::kBf16) {
    const auto* bits = static_cast<const uint16_t*>(row);
    for (uint32_t i = 0; i < width; ++i) bad |= (bits[i] & 0x7f80u) == 0x7f80u;
  } else {
    const auto* bits = static_cast<const uint32_t*>(row);
    for (uint32_t i = 0; i < width; ++i) bad |= (bits[i] & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

}  // namespace volley::engine
