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

}  // namespace volley::kernels
