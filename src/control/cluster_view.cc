#include "volley/control/cluster_view.h"

#include <vector>

namespace volley::control {

Result<protocol::ExpertMap> expert_map_of(const v1::ClusterView& view, uint32_t layers,
                                          uint32_t experts) {
  std::vector<protocol::ExpertMap::Holding> holdings;
  for (const v1::ClusterMember& member : view.members()) {
    const v1::NodeRegistration& node = member.registration();
    if (node.role() != v1::ROLE_EXPERT || !member.health().ready()) continue;
    holdings.push_back({.node = {.name = node.name(), .incarnation = {node.incarnation()}},
                        .experts = {node.experts().begin(), node.experts().end()}});
  }
  return protocol::ExpertMap::build(version_of(view), layers, experts, holdings);
}

v1::LinkGeometry to_proto(const protocol::LinkGeometry& geometry) {
  v1::LinkGeometry result;
  result.set_micro_batches(geometry.micro_batches);
  result.set_rows_max(geometry.dispatch.rows_max);
  result.set_entries_max(geometry.dispatch.entries_max);
  result.set_row_bytes(geometry.dispatch.row_bytes);
  result.set_answer_row_bytes(geometry.answer.row_bytes);
  result.set_weight_bytes(geometry.dispatch.weight_bytes);
  return result;
}

}  // namespace volley::control
