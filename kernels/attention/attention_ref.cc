#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/visible_tokens.h"
#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "kernels/common/math.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::reference {
namespace {

// The state of softmax and its weighted sum over some tokens.
struct Partial {
  float largest;           // m
  float sum;               // l
  float acc[kHeadDimMax];  // [head_dim]
};

// One split of one (row, head): tokens [begin, end), all within the same kAttentionSplitTokens.
Partial attend_split(const AttentionArgs& args, uint32_t row, uint32_t head, uint32_t begin,
                     uint32_t end) {
  const KvCacheView& cache = args.cache;
  const bool pairs = cache.dtype == DType::kBf16;
  const uint32_t kv_head = head / (args.heads / cache.kv_heads);
  const auto query = [&](uint32_t d) {
    return load_element(args.query[row], cache.dtype, size_t{head} * cache.head_dim + d);
  };
  const auto block = [&](const std::byte* pool, uint32_t t) {
    return pool + cache.block_offset(kv_head, args.row[row].blocks[t / kKvBlockTokens]);
  };
  const auto key = [&](uint32_t t, uint32_t d) {
    return load_element(block(cache.keys, t), cache.dtype, cache.key_index(t % kKvBlockTokens, d));
  };
  const auto visible = [&](uint32_t t) { return t >= begin && t < end; };
  const auto value = [&](uint32_t t, uint32_t d) {
    if (!visible(t)) return 0.0f;
    return load_element(block(cache.values, t), cache.dtype,
                        cache.value_index(t % kKvBlockTokens, d));
  };

  Partial partial = {.largest = -std::numeric_limits<float>::infinity(), .sum = 0.0f, .acc = {}};
  const uint32_t split_begin = begin / kAttentionSplitTokens * kAttentionSplitTokens;
  float p[kAttentionSplitTokens] = {};  // By token from split_begin on; 0 where not visible.
  for (uint32_t t = begin; t < end; ++t) {
    float score = 0.0f;
    for (uint32_t d = 0; d < cache.head_dim; d += 2) {
      if (pairs) {
        score = add_pair(score, query(d), query(d + 1), key(t, d), key(t, d + 1));
      } else {
        score = std::fma(query(d), key(t, d), score);
        score = std::fma(query(d + 1), key(t, d + 1), score);
      }
    }
    p[t - split_begin] = score * args.scale;
    partial.largest = std::max(partial.largest, p[t - split_begin]);
  }
  float lane[16] = {};
  for (uint32_t t = begin; t < end; ++t) {
    float& probability = p[t - split_begin];
    probability = round_to(exp_f32(probability - partial.largest), cache.dtype);
    lane[t % 16] += probability;
  }
  partial.sum = add_lanes(lane);
  for (uint32_t d = 0; d < cache.head_dim; ++d) {
    float& acc = partial.acc[d];
    for (uint32_t t = begin / 2 * 2; t < end; t += 2) {
      const float even = p[t - split_begin];
      const float odd = p[t + 1 - split_begin];
      if (pairs) {
        acc = add_pair(acc, even, odd, value(t, d), value(t + 1, d));
      } else {
        if (visible(t)) acc = std::fma(even, value(t, d), acc);
        if (visible(t + 1)) acc = std::fma(odd, value(t + 1, d), acc);
      }
    }
  }
  return partial;
}

}  // namespace

void attention(const AttentionArgs& args, ThreadPool& pool) {
  check(args);
  const uint32_t head_dim = args.cache.head_dim;
  pool.parallel_for(static_cast<uint32_t>(args.query.size()), [&](uint32_t row) {
    const VisibleTokens visible = visible_tokens(args.row[row].position, args.window);
    for (uint32_t head = 0; head < args.heads; ++head) {
      Partial total = {};
      for (uint32_t begin = visible.begin; begin < visible.end;) {
        const uint32_t end = std::min(visible.end, attention_split_end(begin));
        const Partial split = attend_split(args, row, head, begin, end);
        if (begin == visible.begin) {
          total = split;
        } else {
          const float largest = std::max(total.largest, split.largest);
          const float a = exp_f32(total.largest - largest);
          const float b = exp_f32(split.largest - largest);
          total.sum = std::fma(total.sum, a, split.sum * b);
          for (uint32_t d = 0; d < head_dim; ++d) {
            total.acc[d] = std::fma(total.acc[d], a, split.acc[d] * b);
          }
          total.largest = largest;
        }
        begin = end;
      }
      for (uint32_t d = 0; d < head_dim; ++d) {
        store_element(args.output[row], args.cache.dtype, size_t{head} * head_dim + d,
                      total.acc[d] / total.sum);
      }
    }
  });
}

}  // namespace volley::kernels::reference
