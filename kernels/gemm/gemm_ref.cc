#include <cmath>

#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

void gemm(const GemmArgs& args, ThreadPool& pool) {
  check(args);
  const PackedMatrix& weight = args.weight;
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    for (uint32_t n = 0; n < weight.rows; ++n) {
      float sum = 0.0f;
      for (uint32_t k = 0; k < weight.cols; ++k) {
        sum =
            std::fma(load_element(args.input[row], args.input_dtype, k),
                     load_element(weight.data, weight.dtype, packed_index(n, k, weight.cols)), sum);
      }
      if (args.add_to_output) sum = static_cast<const float*>(args.output[row])[n] + sum;
      store_element(args.output[row], args.output_dtype, n, sum);
    }
  });
}

}  // namespace volley::kernels::reference
