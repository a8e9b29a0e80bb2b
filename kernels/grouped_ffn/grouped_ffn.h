#pragma once

#include "kernels/common/types.h"

namespace volley::kernels {

/// The three matrices of a gated FFN. Borrowed.
struct FfnWeights {
  PackedMatrix gate;  ///< w1 [ffn, hidden]
  PackedMatrix up;    ///< w3 [ffn, hidden]
  PackedMatrix down;  ///< w2 [hidden, ffn]
};

/// Rows [first_row, first_row + row_count) of the arguments belong to one expert.
struct FfnGroup {
  FfnWeights weights;
  uint32_t first_row;
  uint32_t row_count;
};

/// output[r] = down * (silu(gate * x) . (up * x)) with the weights of the row's group.
///
/// Numerics: the three products as in gemm.h; silu(g) = g / (1 + exp(-g)) in f32; the product with
/// `up` is one f32 multiplication, rounded to `dtype` before the last product; the result is
/// rounded to `dtype`.
struct GroupedFfnArgs {
  std::span<const FfnGroup> groups;  ///< Groups may be empty; together they cover all rows.
  ConstRows input;  ///< [rows][hidden] of dtype, for example rows inside receive slots.
  Rows output;      ///< [rows][hidden] of dtype, for example rows inside send slots.
  DType dtype;
  void* workspace;  ///< grouped_ffn_workspace_bytes(rows, ffn, dtype), 64-byte aligned.
};

/// The workspace holds the inner activations [rows][ffn] of `dtype`.
constexpr size_t grouped_ffn_workspace_bytes(size_t rows, uint32_t ffn, DType dtype) {
  return rows * ffn * dtype_bytes(dtype);
}

}  // namespace volley::kernels
