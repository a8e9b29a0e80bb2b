#pragma once

#include <cmath>

#include "kernels/common/math.h"

namespace volley::kernels::reference {

/// scale_r of rms_norm.h for one row of f32.
inline float rms_scale(const float* input, uint32_t width, float epsilon) {
  float lane[16] = {};
  for (uint32_t i = 0; i < width; ++i) lane[i % 16] = std::fma(input[i], input[i], lane[i % 16]);
  const float mean = add_lanes(lane) / static_cast<float>(width);
  return 1.0f / std::sqrt(mean + epsilon);
}

}  // namespace volley::kernels::reference
