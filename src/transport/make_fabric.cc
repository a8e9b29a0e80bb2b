#include "backends.h"
#include "handshake.h"

namespace volley::transport {

Result<std::unique_ptr<Fabric>> make_fabric(const std::string& backend,
                                            const FabricOptions& options) {
  VOLLEY_RETURN_IF_ERROR(check_options(options));
  if (backend == "local") return make_local_fabric(options);
  if (backend == "shm") return make_shm_fabric(options);
  if (backend == "tcp") return make_tcp_fabric(options);
  if (backend == "rdma") return make_rdma_fabric(options);
  return invalid_argument("transport is '{}', allowed: local, shm, tcp, rdma", backend);
}

}  // namespace volley::transport
