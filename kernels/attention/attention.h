#pragma once

#include "kernels/common/kv_cache.h"
#include "kernels/common/types.h"

namespace volley::kernels {

/// KV tokens per split; part of the numerics contract. A multiple of kKvBlockTokens.
inline constexpr uint32_t kAttentionSplitTokens = 512;

/// One query row: the blocks of its sequence and its position. It sees positions
/// [max(0, position + 1 - window), position] (window 0: all from 0).
struct AttentionRow {
  /// Block index of tokens [16 i, 16 i + 16), for all i up to position / 16.
  const uint32_t* blocks;
  uint32_t position;
};

/// Paged grouped-query attention; decode and chunked prefill are the same operation on rows.
///   out[h] = softmax(scale * q[h] . k[t, h / group]) v[t, h / group]     over the visible tokens t
///
/// Numerics, per (row, head), all sums f32 from +0: scores in ascending dimension, then one product
/// with `scale`. The positions are cut at multiples of kAttentionSplitTokens (absolute positions).
/// Within a split: m = maximum, p[t] = exp(score - m) (kernels/common/math.h), l = sum of p in 16
/// lanes by t % 16, ascending, then pairwise (+8, +4, +2, +1), acc[d] += p[t] * v[t, d] in
/// ascending t. How products are added, by the dtype of the cache:
///   f32   by fma, one after the other.
///   bf16  by pairs of dimensions (scores) and of tokens 2i, 2i + 1 (acc), as gemm.h does, so first
///         the odd one, then the even one, each by fma_flushed; a token that is not visible counts
///         as zeros. p is rounded to bf16 as soon as it is made, also for l.
/// Splits are merged in ascending order: m' = max(m, m_s), a = exp(m - m'), b = exp(m_s - m'),
/// l = fma(l, a, l_s * b), acc = fma(acc, a, acc_s * b), the first split being taken as it is.
/// out = acc / l, rounded once. So a row's value depends on its sequence alone. Memory of tokens
/// that are not visible is not used: it may hold anything.
struct AttentionArgs {
  ConstRows query;  ///< [rows][heads * head_dim] of cache.dtype.
  Rows output;      ///< [rows][heads * head_dim] of cache.dtype; must not overlap the query.
  std::span<const AttentionRow> row;
  uint32_t heads;  ///< A multiple of cache.kv_heads.
  KvCacheView cache;
  float scale;
  uint32_t window = 0;
};

}  // namespace volley::kernels
