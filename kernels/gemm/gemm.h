#pragma once

#include "kernels/common/types.h"

namespace volley {
class ThreadPool;
}

namespace volley::kernels {

/// output[r, n] = sum over k of input[r, k] * weight[n, k]     (add_to_output: += instead of =)
///
/// Numerics: one f32 accumulator per output element, starting at +0; a row has the same bits
/// whatever the row count, tile, thread count or instruction set.
///   f32   acc = fma(input, weight, acc) in ascending k.
///   bf16  pairs (2j, 2j + 1) in ascending j, within a pair first the odd k, then the even one,
///   each
///         by fma_flushed (kernels/common/math.h). A missing last k counts as zero.
/// The bf16 order is the one of the VDPBF16PS instruction, which so gives the bits of plain FMAs.
/// The sum is rounded once to `output_dtype` (nearest even); with `add_to_output`, which needs an
/// f32 output, it is added in one f32 addition.
struct GemmArgs {
  ConstRows input;  ///< [rows][weight.cols] of weight.dtype.
  PackedMatrix weight;
  Rows output;  ///< [rows][weight.rows] of output_dtype; must not overlap the input.
  DType output_dtype;
  bool add_to_output = false;
};

}  // namespace volley::kernels
