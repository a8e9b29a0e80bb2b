#include <cmath>

#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {

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
    for (uint32_t head = 0; head < args.heads; ++head) {
      const float* x = qkv + size_t{head} * cache.head_dim;
      for (uint32_t i = 0; i < cache.head_dim; ++i) {
        store_element(args.query[row], cache.dtype, size_t{head} * cache.head_dim + i,
                      rotated(x, i));
      }
    }
    const auto [block, offset] = args.position[row];
    std::byte* keys = cache.keys + block * cache.block_bytes();
    std::byte* values = cache.values + block * cache.block_bytes();
    for (uint32_t head = 0; head < cache.kv_heads; ++head) {
      const float* key = qkv + size_t{args.heads + head} * cache.head_dim;
      const float* value = key + size_t{cache.kv_heads} * cache.head_dim;
      for (uint32_t i = 0; i < cache.head_dim; ++i) {
        store_element(keys, cache.dtype, cache.key_index(head, offset, i), rotated(key, i));
        store_element(values, cache.dtype, cache.value_index(head, offset, i), value[i]);
      }
    }
  });
}

}  // namespace volley::kernels::reference
