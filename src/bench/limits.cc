#include "volley/bench/limits.h"

#include <algorithm>

#include "arithmetic_peak.h"
#include "kernel_cases.h"
#include "read_bandwidth.h"

namespace volley::bench {
namespace {

/// At most an eighth of what is read could still be cached.
constexpr uint64_t kMemoryPerL3 = 8;

}  // namespace

Result<Limits> measure_limits(uint32_t threads, double seconds) {
  VOLLEY_ASSIGN_OR_RETURN(const Machine machine, inspect_machine());
  if (threads == 0 || threads > machine.cores.size()) {
    return invalid_argument("threads is {}; this process may use {} cores", threads,
                            machine.cores.size());
  }
  VOLLEY_ASSIGN_OR_RETURN(const Arena arena, Arena::create(std::max(kMemoryPerL3 * machine.l3_bytes,
                                                                    threads * machine.l2_bytes)));
  VOLLEY_ASSIGN_OR_RETURN(const auto pinned,
                          PinnedPool::create(std::span(machine.cores).first(threads)));
  Limits limits = measure_arithmetic(pinned->pool(), seconds);
  limits.memory_gbps = MemoryReader(pinned->pool(), arena.bytes()).measure(seconds);
  limits.cache_gbps =
      measure_cache_read(pinned->pool(), arena.bytes(), machine.l2_bytes / 2, seconds);
  return limits;
}

}  // namespace volley::bench
