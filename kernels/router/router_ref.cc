#include <cmath>

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/math.h"
#include "kernels/router/choose_experts.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

void router(const RouterArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.logits.size()), [&](uint32_t row) {
    const float* logits = static_cast<const float*>(args.logits[row]);
    const ExpertChoice choice = choose_experts(args, row);
    if (!choice.valid) return;
    float exponential[kExpertsMax];
    for (uint32_t i = 0; i < args.experts; ++i)
      exponential[i] = exp_f32(logits[i] - choice.largest);
    write_weights(args, row, exponential);
  });
}

}  // namespace volley::kernels::reference
