#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rope/rope_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <algorithm>

#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "kernels/rms_norm/rms_norm-inl.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

template <class T>
HWY_INLINE F32x16 load_up_to(const T* source, size_t count) {
  return count >= 16 ? load16(source) : load_first(source, count);
}

template <class T>
HWY_INLINE void store_up_to(F32x16 value, size_t count, T* target) {
  if (count >= 16) {
    store16(value, target);
  } else {
    store_first(value, count, target);
  }
}

// One head: `rotated` [2 * half].
template <class T>
void rotate_head(const float* x, const float* cosine, const float* sine, uint32_t half,
                 T* rotated) {
  for (uint32_t i = 0; i < half; i += 16) {
    const size_t count = std::min<size_t>(half - i, 16);
    const F32x16 low = load_up_to(x + i, count);
    const F32x16 high = load_up_to(x + half + i, count);
    const F32x16 c = load_up_to(cosine + i, count);
    const F32x16 s = load_up_to(sine + i, count);
    store_up_to(mul_add(low, c, neg(mul(high, s))), count, rotated + i);
    store_up_to(mul_add(high, c, mul(low, s)), count, rotated + half + i);
  }
}

// A head as it is to be rotated: `x` itself, or `x` normalised into `buffer` [head_dim].
inline const float* head_to_rotate(const float* x, const float* norm, float epsilon,
                                   uint32_t head_dim, float* buffer) {
  if (norm == nullptr) return x;
  normalize_row(x, norm, epsilon, head_dim, buffer);
  return buffer;
}

template <class T>
void rope_append_row(const RopeAppendArgs& args, uint32_t row) {
  const KvCacheView& cache = args.cache;
  const uint32_t head_dim = cache.head_dim;
  const uint32_t half = head_dim / 2;
  const float* qkv = static_cast<const float*>(args.qkv[row]);
  const float* cosine = args.cosine + size_t{row} * half;
  const float* sine = args.sine + size_t{row} * half;
  T* query = static_cast<T*>(args.query[row]);
  float normed[kHeadDimMax];
  for (uint32_t head = 0; head < args.heads; ++head) {
    const size_t first = size_t{head} * head_dim;
    const float* x =
        head_to_rotate(qkv + first, args.query_norm, args.norm_epsilon, head_dim, normed);
    rotate_head(x, cosine, sine, half, query + first);
  }
  const KvPosition position = args.position[row];
  for (uint32_t head = 0; head < cache.kv_heads; ++head) {
    const size_t block = cache.block_offset(head, position.block);
    T* keys = reinterpret_cast<T*>(cache.keys + block);
    T* values = reinterpret_cast<T*>(cache.values + block);
    const float* key = qkv + size_t{args.heads + head} * head_dim;
    T rotated[kHeadDimMax];
    const float* x = head_to_rotate(key, args.key_norm, args.norm_epsilon, head_dim, normed);
    rotate_head(x, cosine, sine, half, rotated);
    for (uint32_t i = 0; i < head_dim; ++i) {
      keys[cache.key_index(position.offset, i)] = rotated[i];
    }
    const float* value = key + size_t{cache.kv_heads} * head_dim;
    T stored[kHeadDimMax];
    for (uint32_t i = 0; i < head_dim; i += 16) {
      const size_t count = std::min<size_t>(head_dim - i, 16);
      store_up_to(load_up_to(value + i, count), count, stored + i);
    }
    for (uint32_t i = 0; i < head_dim; ++i) {
      values[cache.value_index(position.offset, i)] = stored[i];
    }
  }
}

void rope_append(const RopeAppendArgs& args, ThreadPool& pool) {
  check(args);
  pool.parallel_for(static_cast<uint32_t>(args.qkv.size()), [&](uint32_t row) {
    if (args.cache.dtype == DType::kF32) {
      rope_append_row<float>(args, row);
    } else {
      rope_append_row<Bf16>(args, row);
    }
  });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
