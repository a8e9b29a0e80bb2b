#include "kernels/pack/pack.h"

#include <cstring>

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels {

void pack(const PackArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.input.size()), [&](uint32_t row) {
    std::memcpy(args.output[row], args.input[row], args.row_bytes);
  });
}

}  // namespace volley::kernels
