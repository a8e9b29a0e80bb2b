#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/types.h"

namespace volley::kernels {

/// Tokens per KV block. One f32 vector of scores; part of the numerics contract of attention.
inline constexpr uint32_t kKvBlockTokens = 16;

/// The largest head dimension that the kernels take: their accumulators lie on the stack.
inline constexpr uint32_t kHeadDimMax = 512;

/// One layer of the paged KV cache. A block holds kKvBlockTokens tokens; keys and values have a
/// pool each, [kv_head][block], so that the blocks of a sequence that lie side by side are one
/// stream of memory per head. Scores of a block fill a vector; bf16 elements lie in the pairs that
/// attention.h adds up, neighbouring dimensions of a key and neighbouring tokens of a value:
///   f32   keys [head_dim][16 tokens]           values [16 tokens][head_dim]
///   bf16  keys [head_dim / 2][16 tokens][2]    values [16 / 2][head_dim][2]
/// Borrowed.
struct KvCacheView {
  std::byte* keys = nullptr;    ///< pool_bytes() bytes
  std::byte* values = nullptr;  ///< pool_bytes() bytes
  uint32_t block_count = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;  ///< Even, at most kHeadDimMax.
  DType dtype = DType::kBf16;

  /// Bytes of one head's keys in one block, and likewise of its values.
  constexpr size_t head_block_bytes() const {
    return size_t{head_dim} * kKvBlockTokens * dtype_bytes(dtype);
  }
  constexpr size_t pool_bytes() const {
    return size_t{kv_heads} * block_count * head_block_bytes();
  }

  /// Where one head's keys (values) of a block lie in their pool.
  constexpr size_t block_offset(uint32_t kv_head, uint32_t block) const {
    return (size_t{kv_head} * block_count + block) * head_block_bytes();
  }
  /// Element of them: dimension `dim` of token `offset` of the block.
  constexpr size_t key_index(uint32_t offset, uint32_t dim) const {
    if (dtype == DType::kF32) return size_t{dim} * kKvBlockTokens + offset;
    return (size_t{dim / 2} * kKvBlockTokens + offset) * 2 + dim % 2;
  }
  constexpr size_t value_index(uint32_t offset, uint32_t dim) const {
    if (dtype == DType::kF32) return size_t{offset} * head_dim + dim;
    return (size_t{offset / 2} * head_dim + dim) * 2 + offset % 2;
  }
};

}  // namespace volley::kernels
