#pragma once

// The `rdma` backend over ports that the caller has opened: make_fabric("rdma") opens those of
// FabricOptions::rdma.

#include <memory>
#include <vector>

#include "volley/rdma/verbs.h"
#include "volley/transport/fabric.h"

namespace volley::transport {

/// `ports` in the order of the rails, one or more; options.rdma.ports is not looked at. Errors:
/// those of make_fabric(), kInvalidArgument (rails, queue depths beyond the device's).
Result<std::unique_ptr<Fabric>> make_rdma_fabric(const FabricOptions& options,
                                                 std::vector<std::shared_ptr<rdma::Device>> ports);

}  // namespace volley::transport
