#include <cmath>

#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

void combine(const CombineArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.residual.size()), [&](uint32_t row) {
    float* residual = static_cast<float*>(args.residual[row]);
    const size_t first = size_t{row} * args.top_k;
    for (uint32_t i = 0; i < args.width; ++i) {
      float sum = 0.0f;
      for (uint32_t j = 0; j < args.top_k; ++j) {
        sum = std::fma(args.weight[first + j],
                       load_element(args.expert_row[first + j], args.dtype, i), sum);
      }
      residual[i] += sum;
    }
  });
}

}  // namespace volley::kernels::reference
