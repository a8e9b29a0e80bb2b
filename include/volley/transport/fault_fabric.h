#pragma once

// A Fabric that misbehaves by seed: the same engine code runs over it, and its tests see what a
// slow, broken or partitioned network does.

#include <atomic>
#include <memory>
#include <span>

#include "volley/transport/fabric.h"

namespace volley::transport {

/// Every probability is per message, in either direction of this node's links.
struct FaultPolicy {
  uint64_t seed = 1;
  /// Every received message is reported this much later, uniformly drawn. Messages of different
  /// slots thereby change their order.
  Nanos delay_min = 0;
  Nanos delay_max = 0;
  /// Makes the delay that of a wire: counted from the sender's post() and not from the poll() that
  /// sees the message, which comes late when the receiver computes. When each slot's last message
  /// was posted, in memory that both ends of the one link share; entries for all slots. This node
  /// writes `posted_here` and reads `posted_there`. Empty: no such memory.
  std::span<std::atomic<Nanos>> posted_here{};
  std::span<std::atomic<Nanos>> posted_there{};
  /// A received message is delayed by `late_delay` on top.
  double late_probability = 0;
  Nanos late_delay = 0;
  /// A received message is reported twice, one event directly after the other.
  double duplicate_probability = 0;
  /// The link fails as this message is sent or received. Of the messages in flight some land, some
  /// do not; this one is among them.
  double link_failure_probability = 0;
  /// The link swallows one direction, chosen evenly, for `partition_time`, beginning with this
  /// message.
  double partition_probability = 0;
  Nanos partition_time = 0;
};

/// Thread rules and contract are Fabric's. A swallowed message is lost: its slot waits for an
/// answer that does not come, until the engine's timeout closes the link.
class FaultFabric : public Fabric {
 public:
  /// Fails the link now, with kUnavailable: this node sees kClosed, and so does the peer, after
  /// this node's next poll() but one at the latest. Unknown links are ignored.
  virtual void fail_link(LinkId link) = 0;
  /// Swallows what arrives (`inbound`: messages, and last_heard() stands still) and what is posted
  /// (`outbound`; heartbeats still go out: to silence them too, partition the peer's inbound side),
  /// until the next call for this link. Unknown links are ignored.
  virtual void partition(LinkId link, bool inbound, bool outbound) = 0;
};

std::unique_ptr<FaultFabric> make_fault_fabric(std::unique_ptr<Fabric> inner,
                                               const FaultPolicy& policy);

}  // namespace volley::transport
