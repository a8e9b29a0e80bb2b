#include "volley/cache/block_allocator.h"

#include "volley/base/check.h"

namespace volley::cache {

BlockAllocator::BlockAllocator(uint32_t block_count)
    : block_count_(block_count), used_(block_count, false) {
  free_.reserve(block_count);
  // Descending, so that the first block handed out is 0.
  for (uint32_t block = block_count; block > 0; --block) free_.push_back(block - 1);
}

Status BlockAllocator::grow(std::vector<uint32_t>& table, uint32_t block_total) {
  if (table.size() >= block_total) return ok_status();
  const size_t needed = block_total - table.size();
  if (needed > free_.size()) {
    return resource_exhausted("{} KV blocks needed, {} of {} free", needed, free_.size(),
                              block_count_);
  }
  for (size_t i = 0; i < needed; ++i) {
    const uint32_t block = free_.back();
    free_.pop_back();
    VOLLEY_CHECK(!used_[block]);
    used_[block] = true;
    table.push_back(block);
  }
  return ok_status();
}

void BlockAllocator::release(std::vector<uint32_t>& table) {
  // Backwards, so that the same blocks come back in the same order.
  while (!table.empty()) {
    const uint32_t block = table.back();
    VOLLEY_CHECK(block < block_count_ && used_[block]);
    used_[block] = false;
    free_.push_back(block);
    table.pop_back();
  }
}

}  // namespace volley::cache
