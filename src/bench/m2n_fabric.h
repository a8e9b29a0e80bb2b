#pragma once

#include "volley/bench/m2n_system.h"
#include "volley/rdma/device.h"

namespace volley::bench {

/// Volley itself: a peer is a node of transport::make_fabric(`fabric`).
M2nSystem m2n_fabric_system(const std::string& fabric);

/// The port of a sender or of a receiver.
rdma::PortSelector m2n_rdma_port(const M2nBenchOptions& options, bool sends);

}  // namespace volley::bench
