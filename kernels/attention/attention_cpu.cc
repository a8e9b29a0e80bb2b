#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/attention/visible_tokens.h"
#include "kernels/common/arguments.h"
#include "kernels/common/implementations.h"
#include "kernels/common/pair_sums-inl.h"
#include "kernels/common/vector-inl.h"
#include "volley/base/thread_pool.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
VOLLEY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

/// Query heads of one KV head that share a pass over its keys and values.
constexpr uint32_t kHeadsMax = HWY_TARGET == HWY_AVX3 ? 8 : 4;
/// Accumulators (F32x16) of values that stay in registers: heads times vectors of dimensions.
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
  /// Where products are not made from the bf16 row itself.
  alignas(64) float query[kHeads][kHeadDimMax];
  /// Scores, then probabilities, of the tokens of a split, by position modulo
  /// kAttentionSplitTokens.
  alignas(64) float p[kHeads][kAttentionSplitTokens];
  alignas(64) Bf16 p_bf16[kHeads][kAttentionSplitTokens];
  Partial<kHeads> split;
  Partial<kHeads> total;
};

template <class T>
HWY_INLINE const T* keys_of(const AttentionArgs& args, const HeadGroup& group, uint32_t token) {
  const uint32_t block = args.row[group.row].blocks[token / kKvBlockTokens];
  return reinterpret_cast<const T*>(args.cache.keys +
                                    args.cache.block_offset(group.kv_head, block));
}

template <class T>
HWY_INLINE const T* values_of(const AttentionArgs& args, const HeadGroup& group, uint32_t token) {
  const uint32_t block = args.row[group.row].blocks[token / kKvBlockTokens];
  return reinterpret_cast<const T*>(args.cache.values +
                                    args.cache.block_offset(group.kv_head, block));
}

/// Hardware prefetchers follow blocks that lie side by side; where they are scattered, this names
/// what to fetch into the L2 cache while the block at `token` is read: the one kFetchBlocks further
/// on, in the order keys of a split, then its values. Null: nothing.
/// Measured (EPYC, one thread, blocks of 2 KiB): side by side 25 GB/s, and 18 with such fetches;
/// scattered 7 to 9, with fetches into the L1 cache 8 to 10, with these 16 to 19.
constexpr uint32_t kFetchBlocks = 8;

template <class T>
HWY_INLINE const T* to_fetch(const AttentionArgs& args, const HeadGroup& group,
                             VisibleTokens tokens, uint32_t token, bool reading_keys) {
  const uint32_t* blocks = args.row[group.row].blocks + token / kKvBlockTokens;
  if (token + kKvBlockTokens >= tokens.end || blocks[1] == blocks[0] + 1) return nullptr;
  const uint32_t target = token + kFetchBlocks * kKvBlockTokens;
  if (target < tokens.end) {
    return reading_keys ? keys_of<T>(args, group, target) : values_of<T>(args, group, target);
  }
  // Past the keys: as far into the values.
  const uint32_t end = (tokens.end + kKvBlockTokens - 1) / kKvBlockTokens * kKvBlockTokens;
  const uint32_t value = tokens.begin + (target - std::min(target, end));
  return reading_keys && value < tokens.end ? values_of<T>(args, group, value) : nullptr;
}

/// The line of 64 bytes at `line`, of a block that to_fetch() has named.
HWY_INLINE void fetch(const void* block, size_t line) {
  if (block != nullptr) {
    __builtin_prefetch(static_cast<const std::byte*>(block) + line * 64, 0, 2);
  }
}

// How products are added. A step takes kInner dimensions of a key, or kInner tokens of a value.

struct F32Sums {
  using Element = float;
  static constexpr uint32_t kInner = 1;
  static constexpr bool kDot = false;
  struct Vector {
    F32x16 value;
  };
  static HWY_INLINE Vector load(const float* source) { return {load16(source)}; }
  static HWY_INLINE Vector load_some(const float* source, size_t count) {
    return {load_first(source, count)};
  }
  static HWY_INLINE F32x16 add_product(F32x16 sum, const float* x, const Vector& vector) {
    return mul_add(broadcast(x[0]), vector.value, sum);
  }
};

/// bf16 by plain FMAs; needs FlushDenormals.
struct WidenedSums {
  using Element = Bf16;
  static constexpr uint32_t kInner = 2;
  static constexpr bool kDot = false;
  struct Vector {
    F32x16 even, odd;
  };
  static HWY_INLINE Vector split(const PairBits& bits) { return {even_of(bits), odd_of(bits)}; }
  static HWY_INLINE Vector load(const Bf16* source) { return split(load_pairs(source)); }
  static HWY_INLINE Vector load_some(const Bf16* source, size_t count) {
    Bf16 buffer[32] = {};
    std::memcpy(buffer, source, count * 2 * sizeof(Bf16));
    return load(buffer);
  }
  /// Only the even or the odd token's half; the other half is zeros.
  static HWY_INLINE Vector keep(Vector vector, bool even) {
    (even ? vector.odd : vector.even) = broadcast(0.0f);
    return vector;
  }
  static HWY_INLINE F32x16 add_product(F32x16 sum, const float* x, const Vector& vector) {
    sum = mul_add(broadcast(x[1]), vector.odd, sum);
    return mul_add(broadcast(x[0]), vector.even, sum);
  }
};

#if HWY_TARGET == HWY_AVX3
struct DotSums {
  using Element = Bf16;
  static constexpr uint32_t kInner = 2;
  static constexpr bool kDot = true;
  struct Vector {
    __m512bh pairs;
  };
  static HWY_INLINE Vector load(const Bf16* source) { return {load_dot_pairs(source)}; }
  static HWY_INLINE Vector load_some(const Bf16* source, size_t count) {
    Bf16 buffer[32] = {};
    std::memcpy(buffer, source, count * 2 * sizeof(Bf16));
    return load(buffer);
  }
  static HWY_INLINE Vector keep(Vector vector, bool even) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(even ? 0x0000ffffu : 0xffff0000u));
    return {(__m512bh)_mm512_and_si512((__m512i)vector.pairs, mask)};
  }
  static HWY_INLINE F32x16 add_product(F32x16 sum, const Bf16* x, const Vector& vector) {
    return add_dot_pairs(sum, broadcast_dot_pair(x), vector.pairs);
  }
};
#endif

/// The left factors as the sums take them: widened, or the bf16 elements themselves.
template <class Sums, uint32_t kHeads>
HWY_INLINE auto probabilities(const Scratch<kHeads>& scratch, uint32_t head) {
  if constexpr (Sums::kDot) {
    return static_cast<const Bf16*>(scratch.p_bf16[head]);
  } else {
    return static_cast<const float*>(scratch.p[head]);
  }
}

template <class Sums, uint32_t kHeads>
HWY_INLINE auto query_of(const AttentionArgs& args, const HeadGroup& group,
                         const Scratch<kHeads>& scratch, uint32_t head) {
  if constexpr (Sums::kDot) {
    return static_cast<const Bf16*>(args.query[group.row]) +
           size_t{group.first_head + head} * args.cache.head_dim;
  } else {
    return static_cast<const float*>(scratch.query[head]);
  }
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

/// A block that only some tokens of are visible.
HWY_INLINE bool is_edge(uint32_t block_token, VisibleTokens tokens) {
  return block_token < tokens.begin || block_token + kKvBlockTokens > tokens.end;
}

/// Scores of the block at `token` into scratch.p, minus infinity for tokens that are not visible;
/// `largest` takes their maxima. Block after block: several at a time would give the additions more
/// independent chains, but four streams of a block's length each lose the hardware prefetchers (12
/// GB/s instead of 19, EPYC, one thread, heads of 64).
template <class Sums, uint32_t kHeads>
HWY_INLINE void score_block(const AttentionArgs& args, const HeadGroup& group, VisibleTokens tokens,
                            uint32_t token, F32x16 (&largest)[kHeads], Scratch<kHeads>& scratch) {
  using T = typename Sums::Element;
  const T* keys = keys_of<T>(args, group, token);
  const T* ahead = to_fetch<T>(args, group, tokens, token, true);
  F32x16 score[kHeads];
  decltype(query_of<Sums>(args, group, scratch, 0)) query[kHeads];
#pragma GCC unroll 8
  for (uint32_t h = 0; h < kHeads; ++h) {
    score[h] = broadcast(0.0f);
    query[h] = query_of<Sums>(args, group, scratch, h);
  }
  for (uint32_t d = 0; d < args.cache.head_dim; d += Sums::kInner) {
    const auto key = Sums::load(keys + size_t{d} * kKvBlockTokens);
    fetch(ahead, d / Sums::kInner);
#pragma GCC unroll 8
    for (uint32_t h = 0; h < kHeads; ++h) {
      score[h] = Sums::add_product(score[h], query[h] + d, key);
    }
  }
  const F32x16 lowest = broadcast(-std::numeric_limits<float>::infinity());
  const bool edge = is_edge(token, tokens);
#pragma GCC unroll 8
  for (uint32_t h = 0; h < kHeads; ++h) {
    F32x16 scaled = mul(score[h], broadcast(args.scale));
    if (HWY_UNLIKELY(edge)) {
      for (size_t part = 0; part < kParts; ++part) {
        scaled.part[part] = hn::IfThenElse(visible_lanes(token, part, tokens), scaled.part[part],
                                           lowest.part[part]);
      }
    }
    store16(scaled, &scratch.p[h][token % kAttentionSplitTokens]);
    largest[h] = max(largest[h], scaled);
  }
}

template <class Sums, uint32_t kHeads>
HWY_NOINLINE void score_split(const AttentionArgs& args, const HeadGroup& group,
                              VisibleTokens tokens, Scratch<kHeads>& scratch) {
  F32x16 largest[kHeads];
  for (uint32_t h = 0; h < kHeads; ++h) {
    largest[h] = broadcast(-std::numeric_limits<float>::infinity());
  }
  for (uint32_t token = tokens.begin / kKvBlockTokens * kKvBlockTokens; token < tokens.end;
       token += kKvBlockTokens) {
    score_block<Sums, kHeads>(args, group, tokens, token, largest, scratch);
  }
  for (uint32_t h = 0; h < kHeads; ++h) scratch.split.largest[h] = max_across(largest[h]);
}

/// Scores to probabilities relative to the split's maximum, and their sums. Tokens that are not
/// visible get exactly 0, which changes no sum. Meanwhile the memory would idle: the first values
/// are fetched.
template <class Sums, uint32_t kHeads>
void exponentiate_split(const AttentionArgs& args, const HeadGroup& group, VisibleTokens tokens,
                        Scratch<kHeads>& scratch) {
  using T = typename Sums::Element;
  constexpr uint32_t kFetchLines = 4;
  const uint32_t block_lines = static_cast<uint32_t>(args.cache.head_block_bytes() / 64);
  const uint32_t first = tokens.begin / kKvBlockTokens * kKvBlockTokens;
  uint32_t fetch_token = first;
  uint32_t fetch_line = 0;
  for (uint32_t h = 0; h < kHeads; ++h) {
    const F32x16 largest = broadcast(scratch.split.largest[h]);
    F32x16 sum = broadcast(0.0f);
    for (uint32_t token = first; token < tokens.end; token += kKvBlockTokens) {
      if (fetch_token < tokens.end) {
        const T* values = values_of<T>(args, group, fetch_token);
#pragma GCC unroll 4
        for (uint32_t line = 0; line < kFetchLines; ++line) fetch(values, fetch_line + line);
        fetch_line += kFetchLines;
        if (fetch_line >= block_lines) {
          fetch_line = 0;
          fetch_token += kKvBlockTokens;
        }
      }
      const uint32_t index = token % kAttentionSplitTokens;
      float* p = &scratch.p[h][index];
      F32x16 exponential = exp16_nonpositive(sub(load16(p), largest));
      if (HWY_UNLIKELY(is_edge(token, tokens))) {
        for (size_t part = 0; part < kParts; ++part) {
          exponential.part[part] =
              hn::IfThenElseZero(visible_lanes(token, part, tokens), exponential.part[part]);
        }
      }
      if constexpr (Sums::kInner == 2) {
        Bf16* rounded = &scratch.p_bf16[h][index];
#if HWY_TARGET == HWY_AVX3
        if constexpr (Sums::kDot) {
          store_normal16(exponential, rounded);
        } else {
          store16(exponential, rounded);
        }
#else
        store16(exponential, rounded);
#endif
        exponential = load16(rounded);
      }
      if constexpr (!Sums::kDot) store16(exponential, p);
      sum = add(sum, exponential);
    }
    scratch.split.sum[h] = add_across(sum);
  }
}

/// acc[d] of kVectors * 16 dimensions from `first_dim` on, with kPartial only of the last `rest` of
/// the head, over all visible tokens in ascending order. Other tokens are not even multiplied by 0:
/// their memory may hold anything.
template <class Sums, uint32_t kPassHeads, uint32_t kVectors, bool kPartial, uint32_t kHeads>
HWY_INLINE void sum_vectors(const AttentionArgs& args, const HeadGroup& group, VisibleTokens tokens,
                            uint32_t first_head, uint32_t first_dim, uint32_t rest,
                            Scratch<kHeads>& scratch) {
  using T = typename Sums::Element;
  constexpr uint32_t kInner = Sums::kInner;
  const size_t stride = size_t{args.cache.head_dim} * kInner;
  F32x16 acc[kPassHeads][kVectors];
#pragma GCC unroll 8
  for (uint32_t h = 0; h < kPassHeads; ++h) {
#pragma GCC unroll 8
    for (uint32_t v = 0; v < kVectors; ++v) acc[h][v] = broadcast(0.0f);
  }
  decltype(probabilities<Sums>(scratch, 0)) p[kPassHeads];
  for (uint32_t h = 0; h < kPassHeads; ++h) p[h] = probabilities<Sums>(scratch, first_head + h);
  for (uint32_t token = tokens.begin / kInner * kInner; token < tokens.end;) {
    const uint32_t block_end = (token / kKvBlockTokens + 1) * kKvBlockTokens;
    const uint32_t end = std::min(tokens.end, block_end);
    const T* value = values_of<T>(args, group, token) + size_t{first_dim} * kInner +
                     token % kKvBlockTokens / kInner * stride;
    const T* ahead = to_fetch<T>(args, group, tokens, token, false);
    size_t line = first_dim * kInner * sizeof(T) / 64;
    for (; token < end; token += kInner) {
      const uint32_t index = token % kAttentionSplitTokens;
      const bool edge = kInner == 2 && (token < tokens.begin || token + 1 >= tokens.end);
#pragma GCC unroll 8
      for (uint32_t v = 0; v < kVectors; ++v) {
        const T* source = value + size_t{v} * 16 * kInner;
        fetch(ahead, line + v);
        auto x = kPartial ? Sums::load_some(source, rest) : Sums::load(source);
        if constexpr (kInner == 2) {
          if (HWY_UNLIKELY(edge)) x = Sums::keep(x, token >= tokens.begin);
        }
#pragma GCC unroll 8
        for (uint32_t h = 0; h < kPassHeads; ++h) {
          acc[h][v] = Sums::add_product(acc[h][v], p[h] + index, x);
        }
      }
      value += stride;
      line += stride * sizeof(T) / 64;
    }
  }
#pragma GCC unroll 8
  for (uint32_t h = 0; h < kPassHeads; ++h) {
#pragma GCC unroll 8
    for (uint32_t v = 0; v < kVectors; ++v) {
      store16(acc[h][v], &scratch.split.acc[first_head + h][first_dim + v * 16]);
    }
  }
}

/// All dimensions of kPassHeads heads, in the widest steps that the registers allow.
template <class Sums, uint32_t kPassHeads, uint32_t kHeads>
HWY_INLINE void sum_dimensions(const AttentionArgs& args, const HeadGroup& group,
                               VisibleTokens tokens, uint32_t first_head,
                               Scratch<kHeads>& scratch) {
  const uint32_t head_dim = args.cache.head_dim;
  constexpr uint32_t kVectors = std::min(kValueAccumulators / kPassHeads, 8u);
  uint32_t d = 0;
  for (; d + kVectors * 16 <= head_dim; d += kVectors * 16) {
    sum_vectors<Sums, kPassHeads, kVectors, false>(args, group, tokens, first_head, d, 0, scratch);
  }
  if constexpr (kVectors > 2) {
    for (; d + 32 <= head_dim; d += 32) {
      sum_vectors<Sums, kPassHeads, 2, false>(args, group, tokens, first_head, d, 0, scratch);
    }
  }
  for (; d + 16 <= head_dim; d += 16) {
    sum_vectors<Sums, kPassHeads, 1, false>(args, group, tokens, first_head, d, 0, scratch);
  }
  if (d < head_dim) {
    sum_vectors<Sums, kPassHeads, 1, true>(args, group, tokens, first_head, d, head_dim - d,
                                           scratch);
  }
}

/// Heads whose accumulators for a whole row of values fit go together, so that values are read as
/// one stream; the next heads find them in the L2 cache.
template <class Sums, uint32_t kHeads>
HWY_NOINLINE void sum_values(const AttentionArgs& args, const HeadGroup& group,
                             VisibleTokens tokens, Scratch<kHeads>& scratch) {
  const uint32_t vectors = (args.cache.head_dim + 15) / 16;
  if constexpr (kHeads > 2 && kValueAccumulators >= 16) {
    if (vectors > kValueAccumulators / 4) {
      for (uint32_t h = 0; h < kHeads; h += 2) {
        sum_dimensions<Sums, 2>(args, group, tokens, h, scratch);
      }
      return;
    }
    for (uint32_t h = 0; h < kHeads; h += 4) {
      sum_dimensions<Sums, 4>(args, group, tokens, h, scratch);
    }
  } else {
    sum_dimensions<Sums, kHeads>(args, group, tokens, 0, scratch);
  }
}

/// The two sums, under FlushDenormals where FMAs make them.
template <class Sums, uint32_t kHeads>
void attend_split(const AttentionArgs& args, const HeadGroup& group, VisibleTokens tokens,
                  Scratch<kHeads>& scratch) {
  if constexpr (std::is_same_v<Sums, WidenedSums>) {
    {
      const FlushDenormals flush;
      score_split<Sums, kHeads>(args, group, tokens, scratch);
    }
    exponentiate_split<Sums, kHeads>(args, group, tokens, scratch);
    const FlushDenormals flush;
    sum_values<Sums, kHeads>(args, group, tokens, scratch);
  } else {
    score_split<Sums, kHeads>(args, group, tokens, scratch);
    exponentiate_split<Sums, kHeads>(args, group, tokens, scratch);
    sum_values<Sums, kHeads>(args, group, tokens, scratch);
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

template <class Sums, uint32_t kHeads>
void attend(const AttentionArgs& args, const HeadGroup& group) {
  using T = typename Sums::Element;
  const uint32_t head_dim = args.cache.head_dim;
  const uint32_t whole = head_dim / 16 * 16;
  Scratch<kHeads> scratch;
  const size_t first = size_t{group.first_head} * head_dim;
  if constexpr (!Sums::kDot) {
    const T* query = static_cast<const T*>(args.query[group.row]) + first;
    for (uint32_t h = 0; h < kHeads; ++h) {
      const T* source = query + size_t{h} * head_dim;
      for (uint32_t d = 0; d < whole; d += 16) store16(load16(source + d), &scratch.query[h][d]);
      if (whole != head_dim) {
        store16(load_first(source + whole, head_dim - whole), &scratch.query[h][whole]);
      }
    }
  }
  const VisibleTokens visible = visible_tokens(args.row[group.row].position, args.window);
  for (uint32_t begin = visible.begin; begin < visible.end;) {
    const VisibleTokens tokens = {begin, std::min(visible.end, attention_split_end(begin))};
    attend_split<Sums, kHeads>(args, group, tokens, scratch);
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

template <class Sums>
void attend_kv_head(const AttentionArgs& args, uint32_t row, uint32_t kv_head) {
  const uint32_t heads_per_kv = args.heads / args.cache.kv_heads;
  HeadGroup group = {.row = row, .kv_head = kv_head, .first_head = kv_head * heads_per_kv};
  for (uint32_t left = heads_per_kv; left != 0;) {
    uint32_t count = 1;
    if (kHeadsMax >= 8 && left >= 8) {
      if constexpr (kHeadsMax >= 8) attend<Sums, 8>(args, group);
      count = 8;
    } else if (left >= 4) {
      attend<Sums, 4>(args, group);
      count = 4;
    } else if (left >= 2) {
      attend<Sums, 2>(args, group);
      count = 2;
    } else {
      attend<Sums, 1>(args, group);
    }
    group.first_head += count;
    left -= count;
  }
}

/// Rows of one KV head follow each other: in prefill they share its keys and values in the L2
/// cache.
template <class Sums>
void attention_by(const AttentionArgs& args, ThreadPool& pool) {
  const uint32_t rows = static_cast<uint32_t>(args.query.size());
  pool.parallel_for(rows * args.cache.kv_heads,
                    [&](uint32_t tile) { attend_kv_head<Sums>(args, tile % rows, tile / rows); });
}

void attention(const AttentionArgs& args, ThreadPool& pool) {
  check(args);
  if (args.cache.dtype == DType::kF32) return attention_by<F32Sums>(args, pool);
  attention_by<WidenedSums>(args, pool);
}

#if HWY_TARGET == HWY_AVX3
void attention_dot(const AttentionArgs& args, ThreadPool& pool) {
  check(args);
  if (args.cache.dtype == DType::kF32) return attention_by<F32Sums>(args, pool);
  attention_by<DotSums>(args, pool);
}
#endif

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
