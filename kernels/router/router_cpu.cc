#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/router/router_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "kernels/router/choose_experts.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

void route_row(const RouterArgs& args, uint32_t row) {
  const float* logits = static_cast<const float*>(args.logits[row]);
  const ExpertChoice choice = choose_experts(args, row);
  if (!choice.valid) return;
  static_assert(kExpertsMax % 16 == 0);
  float exponential[kExpertsMax];
  const F32x16 largest = broadcast(choice.largest);
  const uint32_t whole = args.experts / 16 * 16;
  for (uint32_t i = 0; i < whole; i += 16) {
    store16(exp16(sub(load16(logits + i), largest)), exponential + i);
  }
  if (whole != args.experts) {
    const F32x16 x = load_first(logits + whole, args.experts - whole);
    store16(exp16(sub(x, largest)), exponential + whole);
  }
  write_weights(args, row, exponential);
}

void router(const RouterArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.logits.size()),
                    [&](uint32_t row) { route_row(args, row); });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
