// Goal: every kernel contract compiles under nvcc, and its layouts are the same there. Method: it compiles.

#include "kernels/attention/attention.h"
#include "kernels/combine/combine.h"
#include "kernels/embed/embed.h"
#include "kernels/gemm/gemm.h"
#include "kernels/grouped_ffn/grouped_ffn.h"
#include "kernels/pack/pack.h"
#include "kernels/reduce/reduce.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/router/router.h"
#include "kernels/sample/sample.h"

namespace volley::kernels {

static_assert(sizeof(KvPosition) == 8);
static_assert(sizeof(AttentionRow) == 16);
static_assert(packed_bytes(17, 3, DType::kBf16) == 64 * 4 * 2);
static_assert(packed_bytes(65, 3, DType::kF32) == 128 * 3 * 4);

/// A kernel that takes a contract's types by value, as the CUDA backend's will.
__global__ void fill_positions(KvPosition* position, KvCacheView cache, unsigned int count) {
  const unsigned int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row < count) position[row] = {row / kKvBlockTokens, row % kKvBlockTokens + cache.kv_heads};
}

}  // namespace volley::kernels
