#pragma once

#include <cstdint>
#include <span>

#include "kernels/common/types.h"

namespace volley::kernels {

/// output[r][i] = sum over j in [first[r], first[r + 1]) of weight[j] * input[j][i]
///
/// What combine does with a row's answers, but for any number of them and into a row of its own: an
/// expert node sums with it what it has computed for a token.
///
/// Numerics: in f32; the sum starts at +0 and goes by fma in ascending j, and is rounded to `dtype`
/// at the end. A row's value depends on its own inputs alone.
struct ReduceArgs {
  ConstRows input;                  ///< [terms] rows of `dtype`.
  const float* weight;              ///< [terms].
  std::span<const uint32_t> first;  ///< [rows + 1], from 0 to terms, not descending.
  Rows output;                      ///< [rows] rows of `dtype`, none of which is an input.
  uint32_t width;
  DType dtype;
};

}  // namespace volley::kernels
