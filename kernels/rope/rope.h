#pragma once

#include "kernels/common/kv_cache.h"
#include "kernels/common/types.h"

namespace volley::kernels {

/// Cosines and sines for rotary embedding: angle = f32(position) * inverse_frequency[i], one f32
/// product; cosine and sine are taken in double and rounded to f32.
///   cosine, sine  [positions][half_dim]
void rope_angles(std::span<const uint32_t> positions, std::span<const float> inverse_frequency,
                 float* cosine, float* sine);

/// Where a new token's key and value go.
struct KvPosition {
  uint32_t block;   ///< Index of the block in the layer's pools.
  uint32_t offset;  ///< Token within the block, below kKvBlockTokens.
};

/// Splits a fused QKV row, rotates queries and keys (the two halves of a head are the pair), writes
/// the query and appends key and value to the KV cache.
///   qkv row: [heads + 2 * kv_heads][head_dim] f32, queries first, then keys, then values.
///   x: a head of queries or keys; with its norm given, that head after RMSNorm over head_dim, in
///   f32 and in the numerics of rms_norm.h, before it is rotated.
///   rotated[i]        = fma(x[i], cos[i], -(x[i + half] * sin[i]))
///   rotated[i + half] = fma(x[i + half], cos[i], x[i] * sin[i])
/// Rounded once to `cache.dtype`, which is also the query's.
struct RopeAppendArgs {
  ConstRows qkv;
  const float* cosine;  ///< [rows][head_dim / 2].
  const float* sine;    ///< [rows][head_dim / 2].
  uint32_t heads;
  Rows query;  ///< [rows][heads * head_dim] of cache.dtype.
  KvCacheView cache;
  std::span<const KvPosition> position;  ///< [rows], all different.
  const float* query_norm = nullptr;     ///< [head_dim], the same for all heads; null: no norm.
  const float* key_norm = nullptr;       ///< Likewise. Both or none.
  float norm_epsilon = 0;
};

}  // namespace volley::kernels
