#pragma once

#include <cstdint>
#include <vector>

#include "endpoint.h"

namespace raw_verbs {

enum class Mode : uint8_t { kEnd, kLatency, kBandwidth };

/// One run. The active process sends it to the passive one; kEnd: there are no more.
struct Plan {
  Mode mode = Mode::kEnd;
  bool check = false;  ///< Every message has bytes of its own, and the receiver compares each.
  uint32_t messages = 0;
  uint32_t window = 0;  ///< Of kBandwidth: messages in flight at most.
  uint64_t size_bytes = 0;
};

/// Ping-pong with one message each way per turn. Returns the round trips in ns, in their order.
std::vector<int64_t> ping(Endpoint& endpoint, const Plan& plan);
void pong(Endpoint& endpoint, const Plan& plan);

/// A stream of messages to the slots in turn. Returns the seconds until all were acknowledged by
/// the peer's device or, if they are checked, by the peer, without which a slot is not written
/// again.
double stream(Endpoint& endpoint, const Plan& plan);
void drain(Endpoint& endpoint, const Plan& plan);

}  // namespace raw_verbs
