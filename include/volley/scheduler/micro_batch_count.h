#pragma once

#include <cstdint>

#include "volley/base/ids.h"

namespace volley::scheduler {

/// Measured times of one micro-batch and layer.
struct PhaseTimes {
  Nanos attention = 0;   ///< T_a, compute on the attention node.
  Nanos expert = 0;      ///< T_e, compute on the slowest expert node.
  Nanos transfer = 0;    ///< T_c, one way.
};

/// The smallest m with m * T_f >= T_a + T_e + 2 T_c, T_f = max(T_a, T_e): more micro-batches cannot keep the
/// slower pool busier (MegaScale-Infer, constraint 3, without assuming T_a = T_e). At least 1, at most `max`.
uint32_t micro_batches_for(const PhaseTimes& times, uint32_t max);

}  // namespace volley::scheduler
