// The system calls themselves: libnuma would be one more library for two of them.

#include "volley/base/numa.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <utility>

#include "volley/base/check.h"
#include "volley/base/cores.h"
#include "volley/base/fd.h"

namespace volley {
namespace {

constexpr uint32_t kWordBits = 8 * sizeof(unsigned long);
// The kernel takes one bit less than it is told, but gives as many.
constexpr unsigned long kSetBits = kNumaNodesMax + 1;
constexpr unsigned long kGetBits = kNumaNodesMax;

}  // namespace

Result<std::vector<NumaNode>> read_numa_nodes(const std::string& folder) {
  std::vector<NumaNode> nodes;
  for (uint32_t id = 0; id < kNumaNodesMax; ++id) {
    const std::string file = folder + "/node" + std::to_string(id) + "/cpulist";
    std::ifstream stream(file);
    if (!stream) continue;  // Ids may have gaps.
    NumaNode& node = nodes.emplace_back();
    node.id = id;
    std::string list;
    std::getline(stream, list);
    if (list.empty()) continue;  // Memory without cores.
    Result<std::vector<uint32_t>> cores = parse_core_list(list);
    if (!cores.ok()) return data_loss("{}: {}", file, message_of(cores.status()));
    node.cores = *std::move(cores);
  }
  return nodes;
}

std::vector<uint32_t> numa_nodes_of(std::span<const uint32_t> cores,
                                    std::span<const NumaNode> nodes) {
  std::vector<uint32_t> ids;
  for (const NumaNode& node : nodes) {
    const bool near = std::ranges::any_of(cores, [&](uint32_t core) {
      return std::ranges::find(node.cores, core) != node.cores.end();
    });
    if (near) ids.push_back(node.id);
  }
  return ids;
}

MemoryPlacement::MemoryPlacement(std::span<const uint32_t> nodes) {
  if (nodes.empty()) return;
  NumaMask mask{};
  for (const uint32_t node : nodes) {
    VOLLEY_CHECK(node < kNumaNodesMax);
    mask[node / kWordBits] |= 1ul << (node % kWordBits);
  }
  // Preferred, not bound: a full node must not kill the process.
  const int mode = nodes.size() == 1 ? MPOL_PREFERRED : MPOL_INTERLEAVE;
  if (::syscall(SYS_get_mempolicy, &previous_mode_, previous_nodes_.data(), kGetBits, 0ul, 0ul) !=
          0 ||
      ::syscall(SYS_set_mempolicy, mode, mask.data(), kSetBits) != 0) {
    status_ = failed_precondition("setting the memory policy: {}", errno_text(errno));
    return;
  }
  active_ = true;
}

MemoryPlacement MemoryPlacement::near_cores(std::span<const uint32_t> cores) {
  const Result<std::vector<NumaNode>> nodes = read_numa_nodes();
  std::vector<uint32_t> near;
  if (nodes.ok() && nodes->size() > 1) near = numa_nodes_of(cores, *nodes);
  MemoryPlacement placement(near);
  if (!nodes.ok()) placement.status_ = nodes.status();
  return placement;
}

MemoryPlacement::MemoryPlacement(MemoryPlacement&& other) noexcept
    : active_(std::exchange(other.active_, false)),
      previous_mode_(other.previous_mode_),
      previous_nodes_(other.previous_nodes_),
      status_(std::move(other.status_)) {}

MemoryPlacement::~MemoryPlacement() {
  if (active_) ::syscall(SYS_set_mempolicy, previous_mode_, previous_nodes_.data(), kSetBits);
}

}  // namespace volley
