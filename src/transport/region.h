#pragma once

// The memory of one link between two nodes of one host:
//   control   4096 B  RegionControl
//   dispatch  [slot_count] slots, written by the side that connected
//   answer    [slot_count] slots, written by the listener
// Both sides map it writable, and a mapping cannot be taken back: a region serves one link and is
// then abandoned. Nothing in it is trusted: masks are clipped, headers are copied and then checked.

#include <atomic>
#include <memory>

#include "volley/base/fd.h"
#include "volley/protocol/wire.h"

namespace volley::transport {

/// One direction of a link. The producer of messages writes the first line, the consumer the
/// second, so that neither takes the other's line away by polling.
struct Direction {
  alignas(64) std::atomic<uint64_t> pending;   ///< Bit per slot with a message not yet taken.
  std::atomic<uint64_t> pulses;                ///< Grows while the producer's process lives.
  alignas(64) std::atomic<uint32_t> sleeping;  ///< The consumer wants its eventfd rung.
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(Direction) == 128);

struct RegionControl {
  Direction dispatch;
  Direction answer;
};

class Region {
 public:
  /// Takes and touches the memory; it can neither shrink nor grow afterwards.
  /// Errors: kResourceExhausted.
  static Result<std::shared_ptr<Region>> create(const protocol::LinkGeometry& geometry);
  /// Maps what a peer sent. Errors: kDataLoss unless the size is right and can never change (a
  /// later truncation would turn our reads into SIGBUS), kResourceExhausted.
  static Result<std::shared_ptr<Region>> adopt(UniqueFd memory,
                                               const protocol::LinkGeometry& geometry);

  int memory() const { return memory_.get(); }
  Direction& dispatch() { return control().dispatch; }
  Direction& answer() { return control().answer; }
  std::byte* dispatch_slots() { return mapping_.bytes().data() + kControlBytes; }
  std::byte* answer_slots() { return mapping_.bytes().data() + answer_offset_; }

 private:
  static constexpr size_t kControlBytes = 4096;
  static_assert(sizeof(RegionControl) <= kControlBytes);

  static size_t total_bytes(const protocol::LinkGeometry& geometry) {
    return kControlBytes + geometry.region_bytes();
  }
  RegionControl& control() { return *reinterpret_cast<RegionControl*>(mapping_.bytes().data()); }

  UniqueFd memory_;
  Mapping mapping_;
  size_t answer_offset_ = 0;
};

}  // namespace volley::transport
