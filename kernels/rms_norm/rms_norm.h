#pragma once

#include "kernels/common/types.h"

namespace volley::kernels {

/// output[r, i] = (input[r, i] * scale_r) * weight[i]
/// scale_r = 1 / sqrt(sum_i input[r, i]^2 / width + epsilon)
///
/// Numerics: the sum of squares has 16 f32 lanes; lane j takes elements j, j + 16, ... in ascending
/// order by fma; then lanes are added pairwise: j and j + 8, then + 4, + 2, + 1. Division, square
/// root and the two products are single f32 operations. Rounded once to `output_dtype`.
struct RmsNormArgs {
  ConstRows input;      ///< [rows][width] f32.
  const float* weight;  ///< [width].
  float epsilon;
  uint32_t width;
  Rows output;  ///< [rows][width] of output_dtype; may be the input when that is f32.
  DType output_dtype;
};

}  // namespace volley::kernels
