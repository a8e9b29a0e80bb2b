#pragma once

#include <cstdint>
#include <vector>

#include "volley/rdma/device.h"

namespace volley::transport {

/// Of the `rdma` backend. Both ends of a link must have the same number of rails: ports times
/// queue_pairs.
struct RdmaOptions {
  /// The ports to use, one rail each.
  std::vector<rdma::PortSelector> ports{rdma::PortSelector{}};
  uint32_t queue_pairs = 1;  ///< Of a link on each port, at most 8 in all.
  /// Of messages, and of the pulses, which have queue pairs of their own so that a network that
  /// knows priorities can let them overtake.
  rdma::ConnectionOptions data;
  rdma::ConnectionOptions control;
};
inline constexpr uint32_t kRailsMax = 8;

}  // namespace volley::transport
