#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rms_norm/rms_norm_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "kernels/rms_norm/rms_norm-inl.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

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
