#pragma once

// The backends that make_fabric() chooses from. Their options have passed check_options().

#include <memory>

#include "volley/transport/fabric.h"

namespace volley::transport {

Result<std::unique_ptr<Fabric>> make_local_fabric(const FabricOptions& options);
Result<std::unique_ptr<Fabric>> make_shm_fabric(const FabricOptions& options);
Result<std::unique_ptr<Fabric>> make_tcp_fabric(const FabricOptions& options);
Result<std::unique_ptr<Fabric>> make_rdma_fabric(const FabricOptions& options);

}  // namespace volley::transport
