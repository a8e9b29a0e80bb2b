#pragma once

#include <cstdint>
#include <vector>

#include "volley/base/status.h"

namespace volley::cache {

/// Accounts for the blocks of a paged KV cache; the memory is elsewhere. Pure, not thread-safe.
/// Invariant KV-1: a block is free or belongs to exactly one table.
/// Invariant KV-2: free_count() + blocks in tables == block_count().
class BlockAllocator {
 public:
  /// Block ids are [0, block_count). Freed blocks are handed out last-in first-out.
  explicit BlockAllocator(uint32_t block_count);

  uint32_t block_count() const { return block_count_; }
  uint32_t free_count() const { return static_cast<uint32_t>(free_.size()); }

  /// Grows `table` to at least `block_total` blocks. All or nothing.
  /// Errors: kResourceExhausted, with the number needed and free; `table` is then unchanged.
  Status grow(std::vector<uint32_t>& table, uint32_t block_total);
  /// Returns all blocks of the table and empties it.
  void release(std::vector<uint32_t>& table);

 private:
  uint32_t block_count_;
  std::vector<uint32_t> free_;
  std::vector<bool> used_;  ///< Checks KV-1.
};

constexpr uint32_t blocks_for(uint32_t tokens, uint32_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

}  // namespace volley::cache
