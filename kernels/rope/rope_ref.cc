#include <cmath>

#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "kernels/rms_norm/rms_scale.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {
namespace {

/// A head as it is to be rotated: `x` itself, or `x` normalised into `buffer` [head_dim].
const float* head_to_rotate(const float* x, const float* norm, float epsilon, uint32_t head_dim,
                            float* buffer) {
  if (norm == nullptr) return x;
  const float scale = rms_scale(x, head_dim, epsilon);
  for (uint32_t i = 0; i < head_dim; ++i) buffer[i] = x[i] * scale * norm[i];
  return buffer;
}

}  // namespace

void rope_append(const RopeAppendArgs& args, ThreadPool& pool) {
  check(args);
  const KvCacheView& cache = args.cache;
  const uint32_t half = cache.head_dim / 2;
  pool.parallel_for(static_cast<uint32_t>(args.qkv.size()), [&](uint32_t row) {
    const float* qkv = static_cast<const float*>(args.qkv[row]);
    const float* cosine = args.cosine + size_t{row} * half;
    const float* sine = args.sine + size_t{row} * half;
    const auto rotated = [&](const float* x, uint32_t i) {
      if (i < half) return std::fma(x[i], cosine[i], -(x[i + half] * sine[i]));
      return std::fma(x[i], cosine[i - half], x[i - half] * sine[i - half]);
    };
    float normed[kHeadDimMax];
    for (uint32_t head = 0; head < args.heads; ++head) {
      const float* x = head_to_rotate(qkv + size_t{head} * cache.head_dim, args.query_norm,
                                      args.norm_epsilon, cache.head_dim, normed);
      for (uint32_t i = 0; i < cache.head_dim; ++i) {
        store_element(args.query[row], cache.dtype, size_t{head} * cache.head_dim + i,
                      rotated(x, i));
      }
    }
    const auto [block, offset] = args.position[row];
    for (uint32_t head = 0; head < cache.kv_heads; ++head) {
      std::byte* keys = cache.keys + cache.block_offset(head, block);
      std::byte* values = cache.values + cache.block_offset(head, block);
      const float* key = qkv + size_t{args.heads + head} * cache.head_dim;
      const float* value = key + size_t{cache.kv_heads} * cache.head_dim;
      const float* x =
          head_to_rotate(key, args.key_norm, args.norm_epsilon, cache.head_dim, normed);
      for (uint32_t i = 0; i < cache.head_dim; ++i) {
        store_element(keys, cache.dtype, cache.key_index(offset, i), rotated(x, i));
        store_element(values, cache.dtype, cache.value_index(offset, i), value[i]);
      }
    }
  });
}

}  // namespace volley::kernels::reference
