#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace volley::perf {

/// What weights, activations or cached keys are stored in, and what a device multiplies.
enum class NumberFormat : uint8_t {
  kF32,
  kBf16,  ///< Stands for f16 as well: the same size and rate.
  kFp8,
  kFp4,  ///< MXFP4, NVFP4: scales of their blocks included.
};
inline constexpr size_t kNumberFormats = 4;
inline constexpr std::array<std::string_view, kNumberFormats> kNumberFormatNames = {"f32", "bf16",
                                                                                    "fp8", "fp4"};

/// Storage of one number; of kFp4 with one 8-bit scale for 32 numbers.
constexpr double bytes_of(NumberFormat format) {
  switch (format) {
    case NumberFormat::kF32:
      return 4;
    case NumberFormat::kBf16:
      return 2;
    case NumberFormat::kFp8:
      return 1;
    case NumberFormat::kFp4:
      return 0.53125;
  }
  return 0;
}

constexpr std::string_view name_of(NumberFormat format) {
  return kNumberFormatNames[static_cast<size_t>(format)];
}

}  // namespace volley::perf
