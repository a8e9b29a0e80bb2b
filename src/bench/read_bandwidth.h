#pragma once

#include <cstddef>
#include <span>

#include "volley/base/thread_pool.h"

namespace volley::bench {

/// How fast the pool's threads together read `memory`, which should be many times larger than the
/// caches and at least 2 MiB. Both are borrowed.
class MemoryReader {
 public:
  MemoryReader(ThreadPool& pool, std::span<const std::byte> memory)
      : pool_(pool), memory_(memory) {}

  /// GB/s of the best pass over the whole memory, over several numbers of streams, with and without
  /// software prefetch at several distances. Every way gets at least one pass; together they last
  /// about `seconds`.
  double measure(double seconds);
  /// GB/s of one pass over at most `bytes` of the memory, in the way that was best so far. Goes on
  /// where the last call ended.
  double measure_briefly(size_t bytes);

 private:
  double read(size_t way, size_t first_tile, size_t tile_count);

  ThreadPool& pool_;
  std::span<const std::byte> memory_;
  size_t best_way_ = 0;
  double best_gbps_ = 0;
  size_t next_tile_ = 0;
};

/// GB/s at which the pool's threads together read, each thread again and again over its own
/// `bytes_per_thread` of `memory`, which should fit into its L2 cache.
double measure_cache_read(ThreadPool& pool, std::span<const std::byte> memory,
                          size_t bytes_per_thread, double seconds);

}  // namespace volley::bench
