#pragma once

#include "kernels/common/types.h"

namespace volley::kernels {

/// residual[r, i] += sum over j of weight[r, j] * expert_row[r * top_k + j][i]
///
/// Numerics: the sum starts at +0 and goes by fma in ascending j, which is ascending expert id
/// (router.h), never by arrival; then one f32 addition to the residual.
struct CombineArgs {
  Rows residual;         ///< [rows][width] f32, in and out.
  ConstRows expert_row;  ///< [rows * top_k] rows of `dtype`, for example inside receive slots.
  const float* weight;   ///< [rows, top_k].
  uint32_t top_k;
  uint32_t width;
  DType dtype;
};

}  // namespace volley::kernels
