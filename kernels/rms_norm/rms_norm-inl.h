// One row of RMSNorm in sixteen lanes: the contract is in rms_norm.h. Included once per target of
// Highway (hence no plain include guard), by every kernel that normalises.

#if defined(VOLLEY_KERNELS_RMS_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VOLLEY_KERNELS_RMS_NORM_INL_H_
#undef VOLLEY_KERNELS_RMS_NORM_INL_H_
#else
#define VOLLEY_KERNELS_RMS_NORM_INL_H_
#endif

#include <cmath>

#include "kernels/common/vector-inl.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

template <class T>
void normalize_row(const float* input, const float* weight, float epsilon, uint32_t width,
                   T* output) {
  const uint32_t whole = width / 16 * 16;
  const uint32_t rest = width - whole;
  F32x16 sum = broadcast(0.0f);
  for (uint32_t i = 0; i < whole; i += 16) {
    const F32x16 x = load16(input + i);
    sum = mul_add(x, x, sum);
  }
  if (rest != 0) {
    // The missing lanes add fma(0, 0, sum): their bits do not change.
    const F32x16 x = load_first(input + whole, rest);
    sum = mul_add(x, x, sum);
  }
  const float mean = add_across(sum) / static_cast<float>(width);
  const F32x16 scale = broadcast(1.0f / std::sqrt(mean + epsilon));
  for (uint32_t i = 0; i < whole; i += 16) {
    store16(mul(mul(load16(input + i), scale), load16(weight + i)), output + i);
  }
  if (rest != 0) {
    const F32x16 y =
        mul(mul(load_first(input + whole, rest), scale), load_first(weight + whole, rest));
    store_first(y, rest, output + whole);
  }
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET
#endif  // VOLLEY_KERNELS_RMS_NORM_INL_H_
