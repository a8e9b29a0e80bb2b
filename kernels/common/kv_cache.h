#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/types.h"

namespace volley::kernels {

/// Tokens per KV block. One f32 vector of scores; part of the numerics contract of attention.
inline constexpr uint32_t kKvBlockTokens = 16;

/// The largest head dimension that the kernels take: their accumulators lie on the stack.
inline constexpr uint32_t kHeadDimMax = 512;

/// One layer of the paged KV cache. A block holds kKvBlockTokens tokens. Scores of a block fill a
/// vector; bf16 elements lie in the pairs that attention.h adds up, neighbouring dimensions of a
/// key and neighbouring tokens of a value:
///   f32   keys [kv_head][head_dim][16 tokens]           values [kv_head][16 tokens][head_dim]
///   bf16  keys [kv_head][head_dim / 2][16 tokens][2]    values [kv_head][16 / 2][head_dim][2]
/// Both pools are arrays of blocks of `block_bytes()`. Borrowed.
struct KvCacheView {
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;  ///< Even, at most kHeadDimMax.
  DType dtype = DType::kBf16;

  /// Bytes of one block of keys, and likewise of values.
  constexpr size_t block_bytes() const {
    return size_t{kv_heads} * head_dim * kKvBlockTokens * dtype_bytes(dtype);
  }

  /// Element of a block of keys: dimension `dim` of the key of token `offset` of the block.
  constexpr size_t key_index(uint32_t kv_head, uint32_t offset, uint32_t dim) const {
    const size_t head = size_t{kv_head} * head_dim * kKvBlockTokens;
    if (dtype == DType::kF32) return head + size_t{dim} * kKvBlockTokens + offset;
    return head + (size_t{dim / 2} * kKvBlockTokens + offset) * 2 + dim % 2;
  }
  /// Element of a block of values, likewise.
  constexpr size_t value_index(uint32_t kv_head, uint32_t offset, uint32_t dim) const {
    const size_t head = size_t{kv_head} * head_dim * kKvBlockTokens;
    if (dtype == DType::kF32) return head + size_t{offset} * head_dim + dim;
    return head + (size_t{offset / 2} * head_dim + dim) * 2 + offset % 2;
  }
};

}  // namespace volley::kernels
