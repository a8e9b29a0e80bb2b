#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "kernels/rms_norm/rms_scale.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

void rms_norm(const RmsNormArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    const float* input = static_cast<const float*>(args.input[row]);
    const float scale = rms_scale(input, args.width, args.epsilon);
    for (uint32_t i = 0; i < args.width; ++i) {
      store_element(args.output[row], args.output_dtype, i, input[i] * scale * args.weight[i]);
    }
  });
}

}  // namespace volley::kernels::reference
