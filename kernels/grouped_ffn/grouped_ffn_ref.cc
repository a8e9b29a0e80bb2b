#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "kernels/common/math.h"
#include "kernels/gemm/dot_ref.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {
void grouped_ffn(const GroupedFfnArgs& args, ThreadPool& pool) {
  check(args);
  for (const FfnGroup& group : args.groups) {
    const FfnWeights& weights = group.weights;
    const size_t row_bytes = weights.gate.rows * dtype_bytes(args.dtype);
    pool.parallel_for(group.row_count, [&](uint32_t index) {
      const uint32_t row = group.first_row + index;
      std::byte* hidden = static_cast<std::byte*>(args.workspace) + row * row_bytes;
      for (uint32_t n = 0; n < weights.gate.rows; ++n) {
        const float gate = dot(args.input[row], weights.gate, n);
        const float up = dot(args.input[row], weights.up, n);
        store_element(hidden, args.dtype, n, silu_f32(gate) * up);
      }
      for (uint32_t n = 0; n < weights.down.rows; ++n) {
        store_element(args.output[row], args.dtype, n, dot(hidden, weights.down, n));
      }
    });
  }
}

}  // namespace volley::kernels::reference
