#pragma once

#include <cstdint>

#include "volley/base/status.h"
#include "volley/protocol/expert_map.h"
#include "volley/v1/control.pb.h"

namespace volley::control {

/// The expert map that a view stands for: the holdings of the expert nodes that are ready.
/// Errors: as ExpertMap::build.
Result<protocol::ExpertMap> expert_map_of(const v1::ClusterView& view, uint32_t layers,
                                          uint32_t experts);

inline protocol::MapVersion version_of(const v1::ClusterView& view) {
  return {.term = view.term(), .number = view.number()};
}

v1::LinkGeometry to_proto(const protocol::LinkGeometry& geometry);

}  // namespace volley::control
