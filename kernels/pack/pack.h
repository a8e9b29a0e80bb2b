#pragma once

#include "kernels/common/types.h"

namespace volley::kernels {

/// Copies token rows into send slots: output[i] = input[i], `row_bytes` each. A token that goes to
/// several expert nodes is listed once per node. Slots are written once, front to back, and not
/// read by the sender.
struct PackArgs {
  ConstRows input;
  Rows output;
  size_t row_bytes;
};

/// A row of `width` elements as E4M3 (volley/base/e4m3.h) with a scale of its own:
///   codes  [width]         one byte each
///   zeros                  up to the scale
///   scale  f32             the last 4 bytes
/// `row_bytes` is a multiple of 4 and at least width + 4; a row starts at a multiple of 4. An
/// element is code * scale.
///
/// pack_e4m3 writes rows of `dtype` so, from wherever to send slots, as pack does.
///
/// Numerics: amax is the largest magnitude of the row; scale = max(amax / 448, 2^-126), so it is
/// never zero or denormal; inverse = 1 / scale, one division for the row; code = E4M3(x * inverse).
/// Every operation rounds once in f32, to nearest even, and so does E4M3, which saturates. So a row
/// of zeros has the scale 2^-126 and the codes of its zeros, signs kept. A row with a NaN or an
/// infinity has the scale NaN and only zeros as codes: all its elements are NaN at the reader.
struct PackE4m3Args {
  ConstRows input;  ///< [rows][width] of `dtype`.
  Rows output;      ///< [rows] of `row_bytes` bytes, as above.
  uint32_t width;
  DType dtype;
  size_t row_bytes;
};

/// Reads such rows back: output[r, i] = code * scale, one f32 multiplication to nearest even, then
/// rounded to `dtype`. The code NaN gives NaN. Nothing is flushed. Any bytes are valid input.
struct UnpackE4m3Args {
  ConstRows input;  ///< [rows] of `row_bytes` bytes.
  Rows output;      ///< [rows][width] of `dtype`.
  uint32_t width;
  DType dtype;
  size_t row_bytes;
};

}  // namespace volley::kernels
