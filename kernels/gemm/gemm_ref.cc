#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "kernels/gemm/dot_ref.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

void gemm(const GemmArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    for (uint32_t n = 0; n < args.weight.rows; ++n) {
      float sum = dot(args.input[row], args.weight, n);
      if (args.add_to_output) sum = static_cast<const float*>(args.output[row])[n] + sum;
      store_element(args.output[row], args.output_dtype, n, sum);
    }
  });
}

}  // namespace volley::kernels::reference
