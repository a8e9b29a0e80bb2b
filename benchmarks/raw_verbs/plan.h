#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace raw_verbs {

/// What waiting for a completion does: spin, let others run between looks, or sleep until the
/// device says so.
enum class Wait : uint8_t { kPoll, kYield, kEvent };

struct EndpointOptions {
  std::string device;
  uint32_t gid_index = 1;
  uint32_t port = 1;
  uint32_t timeout_exponent = 14;  ///< A retransmission waits 4.096 us * 2^this.
  uint32_t retries = 6;            ///< rxe takes 7 for "for ever".
  uint32_t inline_bytes_max = 64;  ///< Payloads up to this travel in the work request.
  Wait wait = Wait::kPoll;
  double deadline_s = 60;  ///< The longest wait for one completion.
};

/// The slots of memory at each end.
struct Area {
  size_t slots = 0;
  size_t slot_bytes = 0;
};

enum class Mode : uint8_t { kEnd, kLatency, kBandwidth };

/// One run. The active process sends it to the passive one; kEnd: there are no more.
struct Plan {
  Mode mode = Mode::kEnd;
  bool check = false;  ///< Every message has bytes of its own, and the receiver compares each.
  bool acknowledge = false;  ///< Of kBandwidth: a slot is free when the peer's program says so.
  uint32_t messages = 0;
  uint32_t window = 0;  ///< Of kBandwidth: messages in flight at most.
  uint64_t size_bytes = 0;
};

}  // namespace raw_verbs
