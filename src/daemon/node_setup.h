#pragma once

// What attention and expert nodes do alike when they start: open the checkpoint, make the fabric,
// register.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "kernels/cpu_kernels.h"
#include "volley/base/numa.h"
#include "volley/config/cluster_config.h"
#include "volley/control/controller_client.h"
#include "volley/daemon/role.h"
#include "volley/engine/modelled.h"
#include "volley/engine/profile.h"
#include "volley/engine/traffic.h"
#include "volley/model/weights.h"
#include "volley/transport/fabric.h"
#include "volley/v1/control.pb.h"

namespace volley::daemon {

/// What follows from the cluster file and the checkpoint, the same on every node.
struct NodeSetup {
  model::Checkpoint checkpoint;
  kernels::DType dtype = kernels::DType::kBf16;
  const kernels::CpuKernels* kernels = nullptr;
  bool fp8_dispatch = false;
  protocol::LinkGeometry geometry;
  uint32_t sequence_tokens_max = 0;
  /// With `compute: modelled`: what the engines take for their times.
  std::optional<engine::ModelledCompute> modelled;
  /// Everything that decides bits: see docs/design.md, numerics fingerprint.
  std::string numerics_fingerprint;
};

/// Reads config files and headers, no tensors; with `compute: modelled` config.json alone. Errors:
/// as Checkpoint::open and select_cpu_kernels.
Result<NodeSetup> set_up_node(const config::ClusterConfig& config);

/// Checks a node's cores and begins to place its memory near them; what the node loads and
/// allocates while the result lives lies there. Logs what cannot be had. Errors: kInvalidArgument,
/// naming file, node and core.
Result<MemoryPlacement> place_node(const config::ClusterConfig& config, const std::string& node,
                                   const std::vector<uint32_t>& cores);

/// Logs a warning where the cluster file gives up a promise of docs/design.md.
void warn_of_promises(const config::ClusterConfig& config, const std::string& node);

/// Logs what the process holds now that the node has loaded, and how much of it huge pages back.
void log_memory(const std::string& node);

/// Makes the fabric of a node; `listen` is "" for a node that only connects, which then has room
/// for a link to every expert node. `rdma_ports` are the node's own, if it lists any.
Result<std::unique_ptr<transport::Fabric>> make_node_fabric(
    const config::ClusterConfig& config, const NodeSetup& setup,
    const transport::NodeIdentity& self, const transport::LinkKey& key, const std::string& listen,
    const std::vector<config::RdmaPortConfig>& rdma_ports);

/// The registration's fields that do not depend on the role.
v1::NodeRegistration make_registration(const config::ClusterConfig& config, const NodeSetup& setup,
                                       v1::Role role, const transport::NodeIdentity& self);

/// Joins the cluster and logs when the connection comes and goes. The callbacks run as
/// ControllerClient says.
Result<std::unique_ptr<control::ControllerClient>> join_cluster(
    const config::ClusterConfig& config, v1::NodeRegistration registration,
    std::function<v1::NodeHealth()> health, std::function<void(const v1::ClusterView&)> on_view,
    OnFailure on_refused, std::function<v1::NodeProfile()> profile = {});

/// The message for an engine's profile; `steps` is what the table of `volley status --profile`
/// divides by.
v1::NodeProfile profile_message(const engine::ProfileSnapshot& profile, uint64_t steps,
                                const engine::Traffic& traffic);

/// Resident memory of this process.
uint64_t resident_bytes();

}  // namespace volley::daemon
