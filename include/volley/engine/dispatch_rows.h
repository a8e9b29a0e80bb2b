#pragma once

// What a node's rows look like on the wire.

#include <cstdint>

#include "kernels/common/types.h"
#include "volley/base/status.h"
#include "volley/protocol/wire.h"

namespace volley::engine {

static_assert(static_cast<uint8_t>(kernels::DType::kBf16) ==
                  static_cast<uint8_t>(protocol::RowDType::kBf16) &&
              static_cast<uint8_t>(kernels::DType::kF32) ==
                  static_cast<uint8_t>(protocol::RowDType::kF32));

/// Of the rows of dispatches, in a cluster of `dtype` with or without fp8 dispatches. Answers
/// always have the model's.
inline protocol::RowDType dispatch_dtype(kernels::DType dtype, bool fp8) {
  return fp8 ? protocol::RowDType::kE4m3 : static_cast<protocol::RowDType>(dtype);
}

inline uint32_t dispatch_row_bytes(uint32_t width, kernels::DType dtype, bool fp8) {
  return fp8 ? protocol::e4m3_row_bytes(width)
             : static_cast<uint32_t>(width * kernels::dtype_bytes(dtype));
}

/// Fails unless a link of `geometry` carries the rows of such a cluster: dispatches never have
/// larger rows than answers. Errors: kInvalidArgument.
inline Status check_row_bytes(const protocol::LinkGeometry& geometry, uint32_t width,
                              kernels::DType dtype, bool fp8) {
  const uint32_t dispatch = dispatch_row_bytes(width, dtype, fp8);
  const uint32_t answer = dispatch_row_bytes(width, dtype, false);
  if (geometry.dispatch.row_bytes == dispatch && geometry.answer.row_bytes == answer &&
      dispatch <= answer) {
    return ok_status();
  }
  return invalid_argument(
      "rows of dispatches have {} bytes and those of answers {}, in the link geometry {} and {}",
      dispatch, answer, geometry.dispatch.row_bytes, geometry.answer.row_bytes);
}

}  // namespace volley::engine
