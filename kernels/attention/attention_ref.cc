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
  const uint32_t kv_head = head / (args.heads / cache.kv_heads);
  const uint32_t* blocks = args.row[row].blocks;
  Partial partial = {.largest = -std::numeric_limits<float>::infinity(), .sum = 0.0f, .acc = {}};
  float p[kAttentionSplitTokens];
  for (uint32_t t = begin; t < end; ++t) {
    const std::byte* keys = cache.keys + blocks[t / kKvBlockTokens] * cache.block_bytes();
    float score = 0.0f;
    for (uint32_t d = 0; d < cache.head_dim; ++d) {
      const size_t index =
          (size_t{kv_head} * cache.head_dim + d) * kKvBlockTokens + t % kKvBlockTokens;
      score =
          std::fma(load_element(args.query[row], cache.dtype, size_t{head} * cache.head_dim + d),
                   load_element(keys, cache.dtype, index), score);
    }
    p[t - begin] = score * args.scale;
    partial.largest = std::max(partial.largest, p[t - begin]);
  }
  float lane[16] = {};
  for (uint32_t t = begin; t < end; ++t) {
    p[t - begin] = exp_f32(p[t - begin] - partial.largest);
    lane[t % 16] += p[t - begin];
    const std::byte* values = cache.values + blocks[t / kKvBlockTokens] * cache.block_bytes();
    for (uint32_t d = 0; d < cache.head_dim; ++d) {
      const size_t index =
          (size_t{kv_head} * kKvBlockTokens + t % kKvBlockTokens) * cache.head_dim + d;
      partial.acc[d] =
          std::fma(p[t - begin], load_element(values, cache.dtype, index), partial.acc[d]);
    }
  }
  partial.sum = add_lanes(lane);
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
