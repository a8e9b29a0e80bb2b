#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/types.h"
#include "volley/base/bf16.h"

namespace volley::kernels {

/// One element of a row of `dtype`, as the references read and write them.
inline float load_element(const void* row, DType dtype, size_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(row)[index];
  return to_f32(static_cast<const Bf16*>(row)[index]);
}

inline void store_element(void* row, DType dtype, size_t index, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(row)[index] = value;
  } else {
    static_cast<Bf16*>(row)[index] = to_bf16(value);
  }
}

/// Rounds to `dtype` and back.
inline float round_to(float value, DType dtype) {
  return dtype == DType::kF32 ? value : to_f32(to_bf16(value));
}

/// Element of panel-packed weights: output feature `row`, input feature `col`.
inline size_t packed_index(uint32_t row, uint32_t col, uint32_t cols, DType dtype) {
  const size_t panel = size_t{row / kPanel} * packed_cols(cols, dtype) * kPanel;
  if (dtype == DType::kF32) return panel + size_t{col} * kPanel + row % kPanel;
  return panel + (size_t{col / 2} * kPanel + row % kPanel) * 2 + col % 2;
}

}  // namespace volley::kernels
