#pragma once

#include <cstdint>
#include <vector>

#include "volley/base/status.h"

namespace volley::cache {

/// Accounts for the blocks of a paged KV cache; the memory is elsewhere. Pure, not thread-safe;
/// allocates nothing after construction but what tables grow by.
///
/// A table gets neighbouring blocks as long as it can: kernels read those as one stream, at up to
/// three times the rate of scattered ones. So a new table starts where there is room to grow.
/// Invariant KV-1: a block is free or belongs to exactly one table.
/// Invariant KV-2: free_count() + blocks in tables == block_count().
class BlockAllocator {
 public:
  /// Block ids are [0, block_count).
  explicit BlockAllocator(uint32_t block_count);

  uint32_t block_count() const { return block_count_; }
  uint32_t free_count() const { return free_count_; }

  /// Grows `table` to at least `block_total` blocks. All or nothing.
  /// Errors: kResourceExhausted, with the number needed and free; `table` is then unchanged.
  Status grow(std::vector<uint32_t>& table, uint32_t block_total);
  /// Returns all blocks of the table and empties it.
  void release(std::vector<uint32_t>& table);

 private:
  bool is_free(uint32_t block) const { return (free_[block / 64] >> block % 64 & 1) != 0; }
  void set_free(uint32_t block, bool free) {
    const uint64_t bit = uint64_t{1} << block % 64;
    free_[block / 64] = free ? free_[block / 64] | bit : free_[block / 64] & ~bit;
  }
  /// The first free (used) block from `from` on, or block_count_.
  uint32_t find_free(uint32_t from) const;
  uint32_t find_used(uint32_t from) const;
  uint32_t find(uint32_t from, uint64_t invert) const;
  /// Where a table that wants `count` blocks now should begin, or go on after its neighbour is
  /// taken. There must be a free block.
  uint32_t find_start(uint32_t count);

  uint32_t block_count_;
  uint32_t free_count_;
  uint32_t search_from_ = 0;
  std::vector<uint64_t> free_;  ///< A bit per block.
};

constexpr uint32_t blocks_for(uint32_t tokens, uint32_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

}  // namespace volley::cache
