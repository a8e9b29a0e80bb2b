#pragma once

#include <cmath>

#include "kernels/common/elements.h"
#include "kernels/common/math.h"

namespace volley::kernels::reference {

/// Output feature `n` of one row: the inner product of gemm.h, before any rounding to storage.
inline float dot(const void* input, const PackedMatrix& weight, uint32_t n) {
  const auto x = [&](uint32_t k) { return load_element(input, weight.dtype, k); };
  const auto w = [&](uint32_t k) {
    return load_element(weight.data, weight.dtype, packed_index(n, k, weight.cols, weight.dtype));
  };
  float sum = 0.0f;
  if (weight.dtype == DType::kF32) {
    for (uint32_t k = 0; k < weight.cols; ++k) sum = std::fma(x(k), w(k), sum);
    return sum;
  }
  for (uint32_t k = 0; k < weight.cols; k += 2) {
    sum = k + 1 < weight.cols ? add_pair(sum, x(k), x(k + 1), w(k), w(k + 1))
                              : add_pair(sum, x(k), 0.0f, w(k), 0.0f);
  }
  return sum;
}

}  // namespace volley::kernels::reference
