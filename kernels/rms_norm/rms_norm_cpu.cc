#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rms_norm/rms_norm_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <cmath>

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "volley/base/thread_pool.h"

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

void rms_norm(const RmsNormArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    const float* input = static_cast<const float*>(args.input[row]);
    if (args.output_dtype == DType::kF32) {
      normalize_row(input, args.weight, args.epsilon, args.width,
                    static_cast<float*>(args.output[row]));
    } else {
      normalize_row(input, args.weight, args.epsilon, args.width,
                    static_cast<Bf16*>(args.output[row]));
    }
  });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
