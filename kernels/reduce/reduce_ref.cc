#include <cmath>

#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

void reduce(const ReduceArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.output.size()), [&](uint32_t row) {
    for (uint32_t i = 0; i < args.width; ++i) {
      float sum = 0.0f;
      for (uint32_t j = args.first[row]; j < args.first[row + 1]; ++j) {
        sum = std::fma(args.weight[j], load_element(args.input[j], args.dtype, i), sum);
      }
      store_element(args.output[row], args.dtype, i, sum);
    }
  });
}

}  // namespace volley::kernels::reference
