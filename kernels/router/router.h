#pragma once

#include "kernels/common/types.h"

namespace volley::kernels {

inline constexpr uint32_t kTopkMax = 16;
inline constexpr uint32_t kExpertsMax = 1024;

/// Chooses top_k experts per row from the router's logits.
///   p = softmax(logits) over all experts; the top_k largest logits win, ties go to the lower
///   expert id; the chosen are listed in ascending expert id; normalize: weights are divided by
///   their sum.
///
/// Numerics, f32: m = maximum, e_i = exp(l_i - m), sums in ascending expert id, single divisions:
/// e_i over the sum of all e; `normalize` divides that by the sum of the chosen quotients. A row
/// with a logit that is not finite gets kInvalidExpert and weight 0 everywhere: the caller fails
/// its request.
struct RouterArgs {
  ConstRows logits;  ///< [rows][experts] f32.
  uint32_t experts;  ///< At most kExpertsMax.
  uint32_t top_k;    ///< At least 1, at most kTopkMax and `experts`.
  bool normalize;
  uint32_t* expert;  ///< [rows, top_k] out.
  float* weight;     ///< [rows, top_k] out.
};
inline constexpr uint32_t kInvalidExpert = 0xffffffff;

}  // namespace volley::kernels
