#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <algorithm>
#include <limits>

#include "kernels/attention/visible_tokens.h"
#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

/// Query heads of one KV head that share a pass over its keys and values.
constexpr uint32_t kHeadsMax = 4;
/// Accumulators (F32x16) that stay in registers: heads times blocks for scores, heads times vectors
/// of dimensions for values.
constexpr uint32_t kScoreAccumulators = HWY_TARGET == HWY_AVX3 ? 8 : 4;
constexpr uint32_t kValueAccumulators = HWY_TARGET == HWY_AVX3 ? 16 : 4;

/// Some query heads of one row, all of one KV head.
struct HeadGroup {
  uint32_t row;
  uint32_t kv_head;
  uint32_t first_head;
};

/// The state of softmax and its weighted sum over some tokens, per head.
template <uint32_t kHeads>
struct Partial {
  float largest[kHeads];
  float sum[kHeads];
  alignas(64) float acc[kHeads][kHeadDimMax];
};

template <uint32_t kHeads>
struct Scratch {
  alignas(64) float query[kHeads][kHeadDimMax];
  /// Scores, then probabilities, of the tokens of a split, by position modulo
  /// kAttentionSplitTokens.
  alignas(64) float p[kHeads][kAttentionSplitTokens];
  Partial<kHeads> split;
  Partial<kHeads> total;
};

template <class T>
HWY_INLINE const T* keys_of(const AttentionArgs& args, const HeadGroup& group, uint32_t token) {
  const KvCacheView& cache = args.cache;
  const size_t block = args.row[group.row].blocks[token / kKvBlockTokens];
  const size_t head = size_t{group.kv_head} * cache.head_dim * kKvBlockTokens;
  return reinterpret_cast<const T*>(cache.keys + block * cache.block_bytes()) + head;
}

template <class T>
HWY_INLINE const T* values_of(const AttentionArgs& args, const HeadGroup& group, uint32_t token) {
  const KvCacheView& cache = args.cache;
  const size_t block = args.row[group.row].blocks[token / kKvBlockTokens];
  const size_t head = size_t{group.kv_head} * kKvBlockTokens * cache.head_dim;
  return reinterpret_cast<const T*>(cache.values + block * cache.block_bytes()) + head;
}

/// The lanes of the block at `block_token` that lie in [begin, end).
HWY_INLINE hn::Mask<F32Tag> visible_lanes(uint32_t block_token, size_t part, VisibleTokens tokens) {
  const I32Tag i32;
  const auto lane = hn::Iota(i32, static_cast<int32_t>(part * kPartLanes));
  const int32_t first = static_cast<int32_t>(std::max(tokens.begin, block_token) - block_token);
  const int32_t last = static_cast<int32_t>(std::min(tokens.end - block_token, kKvBlockTokens)) - 1;
  const auto outside = hn::Or(hn::Lt(lane, hn::Set(i32, first)), hn::Gt(lane, hn::Set(i32, last)));
  return hn::RebindMask(F32Tag(), hn::Not(outside));
}

/// Scores of the kBlocks blocks from `token` on into scratch.p, minus infinity for tokens that are
/// not visible; `largest` takes their maxima. Several blocks give the additions independent chains.
template <uint32_t kHeads, uint32_t kBlocks, class T>
HWY_INLINE void score_blocks(const AttentionArgs& args, const HeadGroup& group,
                             VisibleTokens tokens, uint32_t token, F32x16 (&largest)[kHeads],
                             Scratch<kHeads>& scratch) {
  const T* keys[kBlocks];
  F32x16 score[kBlocks][kHeads];
#pragma GCC unroll 8
  for (uint32_t b = 0; b < kBlocks; ++b) {
    keys[b] = keys_of<T>(args, group, token + b * kKvBlockTokens);
#pragma GCC unroll 8
    for (uint32_t h = 0; h < kHeads; ++h) score[b][h] = broadcast(0.0f);
  }
  for (uint32_t d = 0; d < args.cache.head_dim; ++d) {
#pragma GCC unroll 8
    for (uint32_t b = 0; b < kBlocks; ++b) {
      const F32x16 key = load16(keys[b] + size_t{d} * kKvBlockTokens);
#pragma GCC unroll 8
      for (uint32_t h = 0; h < kHeads; ++h) {
        score[b][h] = mul_add(broadcast(scratch.query[h][d]), key, score[b][h]);
      }
    }
  }
  const F32x16 lowest = broadcast(-std::numeric_limits<float>::infinity());
#pragma GCC unroll 8
  for (uint32_t b = 0; b < kBlocks; ++b) {
    const uint32_t block_token = token + b * kKvBlockTokens;
#pragma GCC unroll 8
    for (uint32_t h = 0; h < kHeads; ++h) {
      F32x16 scaled = mul(score[b][h], broadcast(args.scale));
      for (size_t part = 0; part < kParts; ++part) {
        scaled.part[part] = hn::IfThenElse(visible_lanes(block_token, part, tokens),
                                           scaled.part[part], lowest.part[part]);
      }
      store16(scaled, &scratch.p[h][block_token % kAttentionSplitTokens]);
      largest[h] = max(largest[h], scaled);
    }
  }
}

template <uint32_t kHeads, class T>
void score_split(const AttentionArgs& args, const HeadGroup& group, VisibleTokens tokens,
                 Scratch<kHeads>& scratch) {
  F32x16 largest[kHeads];
  for (uint32_t h = 0; h < kHeads; ++h) {
    largest[h] = broadcast(-std::numeric_limits<float>::infinity());
  }
  constexpr uint32_t kBlocks = kScoreAccumulators / kHeads;
  constexpr uint32_t kStep = kBlocks * kKvBlockTokens;
  uint32_t token = tokens.begin / kKvBlockTokens * kKvBlockTokens;
  for (; token + kStep <= tokens.end; token += kStep) {
    score_blocks<kHeads, kBlocks, T>(args, group, tokens, token, largest, scratch);
  }
  for (; token < tokens.end; token += kKvBlockTokens) {
    score_blocks<kHeads, 1, T>(args, group, tokens, token, largest, scratch);
  }
  for (uint32_t h = 0; h < kHeads; ++h) scratch.split.largest[h] = max_across(largest[h]);
}

/// Scores to probabilities relative to the split's maximum, and their sums. Tokens that are not
/// visible get exactly 0, which changes no sum.
template <uint32_t kHeads>
void exponentiate_split(VisibleTokens tokens, Scratch<kHeads>& scratch) {
  for (uint32_t h = 0; h < kHeads; ++h) {
    const F32x16 largest = broadcast(scratch.split.largest[h]);
    F32x16 sum = broadcast(0.0f);
    for (uint32_t token = tokens.begin / kKvBlockTokens * kKvBlockTokens; token < tokens.end;
         token += kKvBlockTokens) {
      float* p = &scratch.p[h][token % kAttentionSplitTokens];
      F32x16 exponential = exp16(sub(load16(p), largest));
      for (size_t part = 0; part < kParts; ++part) {
        exponential.part[part] =
            hn::IfThenElseZero(visible_lanes(token, part, tokens), exponential.part[part]);
      }
      store16(exponential, p);
      sum = add(sum, exponential);
    }
    scratch.split.sum[h] = add_across(sum);
  }
}

/// acc[d] of kVectors * 16 dimensions from `first_dim` on, with kPartial only of the last `rest` of
/// the head, over all visible tokens in ascending order. Other tokens are not even multiplied by 0:
/// their memory may hold anything.
template <uint32_t kHeads, uint32_t kVectors, bool kPartial, class T>
HWY_INLINE void sum_vectors(const AttentionArgs& args, const HeadGroup& group, VisibleTokens tokens,
                            uint32_t first_dim, uint32_t rest, Scratch<kHeads>& scratch) {
  F32x16 acc[kHeads][kVectors];
#pragma GCC unroll 8
  for (uint32_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (uint32_t v = 0; v < kVectors; ++v) acc[h][v] = broadcast(0.0f);
  }
  for (uint32_t token = tokens.begin; token < tokens.end;) {
    const uint32_t block_end = (token / kKvBlockTokens + 1) * kKvBlockTokens;
    const uint32_t end = std::min(tokens.end, block_end);
    const T* values = values_of<T>(args, group, token) + first_dim;
    for (; token < end; ++token) {
      const T* value = values + size_t{token % kKvBlockTokens} * args.cache.head_dim;
      const uint32_t index = token % kAttentionSplitTokens;
#pragma GCC unroll 8
      for (uint32_t v = 0; v < kVectors; ++v) {
        F32x16 x;
        if constexpr (kPartial) {
          x = load_first(value, rest);
        } else {
          x = load16(value + v * 16);
        }
#pragma GCC unroll 8
        for (uint32_t h = 0; h < kHeads; ++h) {
          acc[h][v] = mul_add(broadcast(scratch.p[h][index]), x, acc[h][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (uint32_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (uint32_t v = 0; v < kVectors; ++v) {
      store16(acc[h][v], &scratch.split.acc[h][first_dim + v * 16]);
    }
  }
}

/// All dimensions, in the widest steps that the registers allow.
template <uint32_t kHeads, class T>
void sum_values(const AttentionArgs& args, const HeadGroup& group, VisibleTokens tokens,
                Scratch<kHeads>& scratch) {
  const uint32_t head_dim = args.cache.head_dim;
  constexpr uint32_t kVectors = std::min(kValueAccumulators / kHeads, 8u);
  uint32_t d = 0;
  for (; d + kVectors * 16 <= head_dim; d += kVectors * 16) {
    sum_vectors<kHeads, kVectors, false, T>(args, group, tokens, d, 0, scratch);
  }
  if constexpr (kVectors > 2) {
    for (; d + 32 <= head_dim; d += 32) {
      sum_vectors<kHeads, 2, false, T>(args, group, tokens, d, 0, scratch);
    }
  }
  for (; d + 16 <= head_dim; d += 16) {
    sum_vectors<kHeads, 1, false, T>(args, group, tokens, d, 0, scratch);
  }
  if (d < head_dim) {
    sum_vectors<kHeads, 1, true, T>(args, group, tokens, d, head_dim - d, scratch);
  }
}

template <uint32_t kHeads>
void merge_split(uint32_t head_dim, Scratch<kHeads>& scratch) {
  Partial<kHeads>& total = scratch.total;
  const Partial<kHeads>& split = scratch.split;
  for (uint32_t h = 0; h < kHeads; ++h) {
    const float largest = std::max(total.largest[h], split.largest[h]);
    const float a = exp_f32(total.largest[h] - largest);
    const float b = exp_f32(split.largest[h] - largest);
    total.sum[h] = std::fma(total.sum[h], a, split.sum[h] * b);
    total.largest[h] = largest;
    for (uint32_t d = 0; d < head_dim; d += 16) {
      const F32x16 scaled = mul(load16(&split.acc[h][d]), broadcast(b));
      store16(mul_add(load16(&total.acc[h][d]), broadcast(a), scaled), &total.acc[h][d]);
    }
  }
}

template <uint32_t kHeads, class T>
void attend(const AttentionArgs& args, const HeadGroup& group) {
  const uint32_t head_dim = args.cache.head_dim;
  const uint32_t whole = head_dim / 16 * 16;
  Scratch<kHeads> scratch;
  const size_t first = size_t{group.first_head} * head_dim;
  const T* query = static_cast<const T*>(args.query[group.row]) + first;
  for (uint32_t h = 0; h < kHeads; ++h) {
    const T* source = query + size_t{h} * head_dim;
    for (uint32_t d = 0; d < whole; d += 16) store16(load16(source + d), &scratch.query[h][d]);
    if (whole != head_dim) {
      store16(load_first(source + whole, head_dim - whole), &scratch.query[h][whole]);
    }
  }
  const VisibleTokens visible = visible_tokens(args.row[group.row].position, args.window);
  for (uint32_t begin = visible.begin; begin < visible.end;) {
    const VisibleTokens tokens = {begin, std::min(visible.end, attention_split_end(begin))};
    score_split<kHeads, T>(args, group, tokens, scratch);
    exponentiate_split<kHeads>(tokens, scratch);
    sum_values<kHeads, T>(args, group, tokens, scratch);
    if (begin == visible.begin) {
      scratch.total = scratch.split;
    } else {
      merge_split<kHeads>(head_dim, scratch);
    }
    begin = tokens.end;
  }
  T* output = static_cast<T*>(args.output[group.row]) + first;
  for (uint32_t h = 0; h < kHeads; ++h) {
    T* target = output + size_t{h} * head_dim;
    const F32x16 sum = broadcast(scratch.total.sum[h]);
    for (uint32_t d = 0; d < whole; d += 16) {
      store16(div(load16(&scratch.total.acc[h][d]), sum), target + d);
    }
    if (whole != head_dim) {
      const F32x16 rest = div(load16(&scratch.total.acc[h][whole]), sum);
      store_first(rest, head_dim - whole, target + whole);
    }
  }
}

template <class T>
void attend_kv_head(const AttentionArgs& args, uint32_t row, uint32_t kv_head) {
  const uint32_t heads_per_kv = args.heads / args.cache.kv_heads;
  HeadGroup group = {.row = row, .kv_head = kv_head, .first_head = kv_head * heads_per_kv};
  static_assert(kHeadsMax == 4);
  for (uint32_t left = heads_per_kv; left != 0;) {
    const uint32_t count = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    if (count == 4) {
      attend<4, T>(args, group);
    } else if (count == 2) {
      attend<2, T>(args, group);
    } else {
      attend<1, T>(args, group);
    }
    group.first_head += count;
    left -= count;
  }
}

void attention(const AttentionArgs& args, ThreadPool& pool) {
  check(args);
  const uint32_t kv_heads = args.cache.kv_heads;
  pool.parallel_for(static_cast<uint32_t>(args.query.size()) * kv_heads, [&](uint32_t tile) {
    if (args.cache.dtype == DType::kF32) {
      attend_kv_head<float>(args, tile / kv_heads, tile % kv_heads);
    } else {
      attend_kv_head<Bf16>(args, tile / kv_heads, tile % kv_heads);
    }
  });
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
