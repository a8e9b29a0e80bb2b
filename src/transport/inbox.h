#pragma once

// What one link may receive: the gate that every message passes, whatever carried it.

#include <array>
#include <cstdint>

#include "volley/protocol/wire.h"

namespace volley::transport {

inline constexpr uint32_t kSlotsMax = 2 * protocol::kMicroBatchesMax;
static_assert(kSlotsMax <= 32, "slot sets are 32-bit masks");

/// Invariant: a slot takes a message only while it has credit, and loses the credit with it; so
/// nothing is written to, or reported from, a slot that the engine may be reading.
class Inbox {
 public:
  /// `expected.slot` is ignored. `all_granted` is for the side that receives first.
  void open(const protocol::Expectation& expected, bool all_granted) {
    expected_ = expected;
    const uint32_t slots = 2 * expected.micro_batches;
    credit_ = all_granted ? static_cast<uint32_t>((uint64_t{1} << slots) - 1) : 0;
  }
  /// The peer may send in `slot`.
  void grant(uint32_t slot) { credit_ |= 1u << slot; }
  /// Checks a message for `slot` and keeps a copy of its header. Errors: kDataLoss.
  Status admit(const protocol::MessageHeader& header, uint32_t slot);
  const protocol::MessageHeader& header(uint32_t slot) const { return headers_[slot]; }
  const protocol::Expectation& expected() const { return expected_; }

 private:
  protocol::Expectation expected_;
  uint32_t credit_ = 0;
  std::array<protocol::MessageHeader, kSlotsMax> headers_{};
};

}  // namespace volley::transport
