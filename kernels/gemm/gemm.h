#pragma once

#include "kernels/common/types.h"

namespace volley {
class ThreadPool;
}

namespace volley::kernels {

/// output[r, n] = sum over k of input[r, k] * weight[n, k]     (add_to_output: += instead of =)
///
/// Numerics: one f32 accumulator per output element, starting at +0, `acc = fma(input, weight,
/// acc)` in ascending k. So a row has the same bits whatever the row count, tile, thread count or
/// instruction set. The sum is rounded once to `output_dtype` (nearest even); with `add_to_output`,
/// which needs an f32 output, it is added in one f32 addition.
struct GemmArgs {
  ConstRows input;  ///< [rows][weight.cols] of input_dtype.
  DType input_dtype;
  PackedMatrix weight;
  Rows output;  ///< [rows][weight.rows] of output_dtype; must not overlap the input.
  DType output_dtype;
  bool add_to_output = false;
};

}  // namespace volley::kernels
