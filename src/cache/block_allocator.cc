#include "volley/cache/block_allocator.h"

#include <algorithm>
#include <bit>

#include "volley/base/check.h"

namespace volley::cache {
namespace {

// Runs of free blocks that one search compares; bounds it where the pool is in crumbs.
constexpr uint32_t kRunsCompared = 256;
constexpr uint32_t kWordBits = 64;

}  // namespace

BlockAllocator::BlockAllocator(uint32_t block_count)
    : block_count_(block_count),
      free_count_(block_count),
      free_((block_count + kWordBits - 1) / kWordBits, 0) {
  for (uint32_t block = 0; block < block_count; ++block) set_free(block, true);
}

Status BlockAllocator::grow(std::vector<uint32_t>& table, uint32_t block_total) {
  if (table.size() >= block_total) return ok_status();
  const auto needed = static_cast<uint32_t>(block_total - table.size());
  if (needed > free_count_) {
    return resource_exhausted("{} KV blocks needed, {} of {} free", needed, free_count_,
                              block_count_);
  }
  for (uint32_t left = needed; left > 0; --left) {
    const uint32_t next = table.empty() ? block_count_ : table.back() + 1;
    const uint32_t block = next < block_count_ && is_free(next) ? next : find_start(left);
    VOLLEY_CHECK(is_free(block));
    set_free(block, false);
    --free_count_;
    table.push_back(block);
  }
  return ok_status();
}

void BlockAllocator::release(std::vector<uint32_t>& table) {
  for (const uint32_t block : table) {
    VOLLEY_CHECK(block < block_count_ && !is_free(block));
    set_free(block, true);
    ++free_count_;
  }
  table.clear();
}

uint32_t BlockAllocator::find_free(uint32_t from) const {
  return find(from, 0);
}

uint32_t BlockAllocator::find_used(uint32_t from) const {
  return find(from, ~uint64_t{0});
}

uint32_t BlockAllocator::find(uint32_t from, uint64_t invert) const {
  while (from < block_count_) {
    const uint64_t bits = (free_[from / kWordBits] ^ invert) >> from % kWordBits;
    if (bits != 0) {
      return std::min(block_count_, from + static_cast<uint32_t>(std::countr_zero(bits)));
    }
    from = (from / kWordBits + 1) * kWordBits;
  }
  return block_count_;
}

uint32_t BlockAllocator::find_start(uint32_t count) {
  uint32_t best = block_count_, best_length = 0;
  uint32_t from = search_from_;
  bool wrapped = false;
  for (uint32_t run = 0; run < kRunsCompared; ++run) {
    uint32_t begin = find_free(from);
    if (begin == block_count_) {
      if (wrapped || search_from_ == 0) break;  // All of the pool has been seen.
      // From the front, up to where the search began.
      wrapped = true;
      begin = find_free(0);
    }
    const uint32_t end = find_used(begin);
    if (end - begin > best_length) {
      best = begin;
      best_length = end - begin;
    }
    from = end;
    if (wrapped && from >= search_from_) break;
  }
  search_from_ = from < block_count_ ? from : 0;
  VOLLEY_CHECK(best_length > 0);
  // The table that owns the block before the run may want to grow into it, so this one leaves it
  // half, if the other half is enough.
  return best > 0 && best_length / 2 >= count ? best + best_length / 2 : best;
}

}  // namespace volley::cache
