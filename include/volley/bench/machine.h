#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/base/thread_pool.h"

namespace volley::bench {

/// What a report says about the machine it was measured on.
struct Machine {
  std::string cpu_name;
  /// One hardware thread of each core that this process may use, ascending.
  std::vector<uint32_t> cores;
  uint64_t l2_bytes = 0;  ///< Of one core.
  uint64_t l3_bytes = 0;  ///< Of all that `cores` share; where the system tells nothing, 32 MiB.
};

/// Reads procfs and sysfs. Errors: kUnavailable (the affinity of this process cannot be read).
Result<Machine> inspect_machine();

/// The processors that the calling thread may use, ascending. Errors: kUnavailable.
Result<std::vector<uint32_t>> allowed_processors();

/// Keeps the calling thread on one processor. Errors: kUnavailable.
Status pin_this_thread(uint32_t processor);

/// The processors of a list as sysfs writes it: "0-3,8". Errors: kInvalidArgument.
Result<std::vector<uint32_t>> parse_cpu_list(const std::string& text);

/// "2026-11-23T22:15:43Z": now.
std::string utc_date();

/// A pool whose threads each stay on a core of their own. The thread that makes it works along, is
/// pinned too, and gets its old affinity back when the pool ends; both must happen on that thread.
class PinnedPool {
 public:
  /// A thread for each of `cores`, at least one. Errors: kUnavailable (a core cannot be used).
  static Result<std::unique_ptr<PinnedPool>> create(std::span<const uint32_t> cores);
  ~PinnedPool();
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  ThreadPool& pool() { return pool_; }

 private:
  explicit PinnedPool(uint32_t thread_count) : pool_(thread_count) {}

  ThreadPool pool_;
  std::vector<uint32_t> old_affinity_;
};

}  // namespace volley::bench
