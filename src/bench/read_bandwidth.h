#pragma once

#include <cstddef>
#include <span>

#include "volley/base/thread_pool.h"

namespace volley::bench {

/// GB/s at which the pool's threads together read `memory`, which should be many times larger than
/// the caches: the best pass, over several numbers of streams with and without software prefetch at
/// several distances. Every way gets at least one pass; together they last about `seconds`.
double measure_memory_read(ThreadPool& pool, std::span<const std::byte> memory, double seconds);

/// As above, each thread again and again over its own `bytes_per_thread` of `memory`, which should
/// fit into its L2 cache.
double measure_cache_read(ThreadPool& pool, std::span<const std::byte> memory,
                          size_t bytes_per_thread, double seconds);

}  // namespace volley::bench
