#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/types.h"

namespace volley::kernels {

/// Tokens per KV block. One f32 vector of scores; part of the numerics contract of attention.
inline constexpr uint32_t kKvBlockTokens = 16;

/// The largest head dimension that the kernels take: their accumulators lie on the stack.
inline constexpr uint32_t kHeadDimMax = 512;

/// One layer of the paged KV cache. A block holds kKvBlockTokens tokens:
///   keys   [kv_head][head_dim][16 tokens]   (so that scores of a block fill a vector)
///   values [kv_head][16 tokens][head_dim]
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
};

}  // namespace volley::kernels
