#pragma once

// Which memory is near which cores, and where new memory comes from.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "volley/base/status.h"

namespace volley {

/// NUMA nodes beyond this are not told apart; the kernel's own limit on x86-64.
inline constexpr uint32_t kNumaNodesMax = 1024;

using NumaMask = std::array<unsigned long, kNumaNodesMax / (8 * sizeof(unsigned long))>;

struct NumaNode {
  uint32_t id = 0;
  std::vector<uint32_t> cores;
};

/// The NUMA nodes that the kernel lists, ascending; empty where it knows none.
/// Errors: kDataLoss (a list of cores that cannot be read; names the file).
Result<std::vector<NumaNode>> read_numa_nodes(
    const std::string& folder = "/sys/devices/system/node");

/// Ids of the nodes that hold at least one of `cores`, ascending.
std::vector<uint32_t> numa_nodes_of(std::span<const uint32_t> cores,
                                    std::span<const NumaNode> nodes);

/// While it lives, memory that the calling thread touches first, and threads that it starts, comes
/// from the given NUMA nodes: from the only one, else page by page from each in turn, so that all
/// their memory channels are used. When a node is full, from another one. Memory touched before
/// stays where it is. One thread makes it and destroys it.
class MemoryPlacement {
 public:
  /// No nodes: changes nothing.
  explicit MemoryPlacement(std::span<const uint32_t> nodes);
  /// Puts memory near `cores`; changes nothing without cores or on a host with one node.
  static MemoryPlacement near_cores(std::span<const uint32_t> cores);
  ~MemoryPlacement();
  MemoryPlacement(MemoryPlacement&& other) noexcept;
  MemoryPlacement(const MemoryPlacement&) = delete;
  MemoryPlacement& operator=(const MemoryPlacement&) = delete;

  /// Why the kernel refused, which some containers make it do; memory then comes from where the
  /// kernel likes.
  const Status& status() const { return status_; }

 private:
  bool active_ = false;
  int previous_mode_ = 0;  // As numactl may have set it; comes back at the end.
  NumaMask previous_nodes_{};
  Status status_;
};

}  // namespace volley
