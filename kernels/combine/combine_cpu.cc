#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/combine/combine_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

template <class T>
void combine_row(const CombineArgs& args, uint32_t row) {
  float* residual = static_cast<float*>(args.residual[row]);
  const float* weight = args.weight + size_t{row} * args.top_k;
  const void* const* expert_row = args.expert_row.data() + size_t{row} * args.top_k;
  const uint32_t whole = args.width / 16 * 16;
  const uint32_t rest = args.width - whole;
  for (uint32_t i = 0; i < whole; i += 16) {
    F32x16 sum = broadcast(0.0f);
    for (uint32_t j = 0; j < args.top_k; ++j) {
      sum = mul_add(broadcast(weight[j]), load16(static_cast<const T*>(expert_row[j]) + i), sum);
    }
    store16(add(load16(residual + i), sum), residual + i);
  }
  if (rest != 0) {
    F32x16 sum = broadcast(0.0f);
    for (uint32_t j = 0; j < args.top_k; ++j) {
      const F32x16 x = load_first(static_cast<const T*>(expert_row[j]) + whole, rest);
      sum = mul_add(broadcast(weight[j]), x, sum);
    }
    store_first(add(load_first(residual + whole, rest), sum), rest, residual + whole);
  }
}

void combine(const CombineArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.residual.size()), [&](uint32_t row) {
    if (args.dtype == DType::kF32) {
      combine_row<float>(args, row);
    } else {
      combine_row<Bf16>(args, row);
    }
  });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
