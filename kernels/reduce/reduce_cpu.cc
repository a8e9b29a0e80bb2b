#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/reduce/reduce_cpu.cc"

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
void reduce_row(const ReduceArgs& args, uint32_t row) {
  T* output = static_cast<T*>(args.output[row]);
  const uint32_t begin = args.first[row];
  const uint32_t end = args.first[row + 1];
  const uint32_t whole = args.width / 16 * 16;
  const uint32_t rest = args.width - whole;
  for (uint32_t i = 0; i < whole; i += 16) {
    F32x16 sum = broadcast(0.0f);
    for (uint32_t j = begin; j < end; ++j) {
      const F32x16 x = load16(static_cast<const T*>(args.input[j]) + i);
      sum = mul_add(broadcast(args.weight[j]), x, sum);
    }
    store16(sum, output + i);
  }
  if (rest != 0) {
    F32x16 sum = broadcast(0.0f);
    for (uint32_t j = begin; j < end; ++j) {
      const F32x16 x = load_first(static_cast<const T*>(args.input[j]) + whole, rest);
      sum = mul_add(broadcast(args.weight[j]), x, sum);
    }
    store_first(sum, rest, output + whole);
  }
}

void reduce(const ReduceArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.output.size()), [&](uint32_t row) {
    if (args.dtype == DType::kF32) {
      reduce_row<float>(args, row);
    } else {
      reduce_row<Bf16>(args, row);
    }
  });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
