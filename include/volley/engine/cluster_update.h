#pragma once

#include <memory>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/protocol/expert_map.h"
#include "volley/transport/fabric.h"

namespace volley::engine {

/// An expert node as an attention node must know it.
struct ExpertPeer {
  std::string name;
  Incarnation incarnation;
  std::string fabric_address;
  transport::LinkKey link_key{};
};

/// The expert pool as of one version of the cluster's view.
struct ClusterUpdate {
  std::vector<ExpertPeer> experts;
  std::shared_ptr<const protocol::ExpertMap> map;
};

}  // namespace volley::engine
