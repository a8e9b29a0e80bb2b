#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sample/relative_probabilities.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include "kernels/sample/relative_probabilities.h"

#include "kernels/common/math.h"
#include "kernels/common/vector-inl.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

void relative_probabilities(std::span<const float> logits, float largest, float temperature,
                            float* probability) {
  const size_t whole = logits.size() / 16 * 16;
  const F32x16 offset = broadcast(largest);
  const F32x16 divisor = broadcast(temperature);
  for (size_t i = 0; i < whole; i += 16) {
    const F32x16 x = load16(logits.data() + i);
    store16(exp16(div(sub(x, offset), divisor)), probability + i);
  }
  const size_t rest = logits.size() - whole;
  if (rest != 0) {
    const F32x16 x = load_first(logits.data() + whole, rest);
    store_first(exp16(div(sub(x, offset), divisor)), rest, probability + whole);
  }
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace volley::kernels {
namespace {

void reference_probabilities(std::span<const float> logits, float largest, float temperature,
                             float* probability) {
  for (size_t i = 0; i < logits.size(); ++i) {
    probability[i] = exp_f32((logits[i] - largest) / temperature);
  }
}

auto choose_implementation() {
  [[maybe_unused]] const int64_t supported = hwy::SupportedTargets();
#if HWY_TARGETS & HWY_AVX3
  if ((supported & HWY_AVX3) != 0) return N_AVX3::relative_probabilities;
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((supported & HWY_AVX2) != 0) return N_AVX2::relative_probabilities;
#endif
  return reference_probabilities;
}

}  // namespace

void relative_probabilities(std::span<const float> logits, float largest, float temperature,
                            float* probability) {
  static const auto implementation = choose_implementation();
  implementation(logits, largest, temperature, probability);
}

}  // namespace volley::kernels
#endif
