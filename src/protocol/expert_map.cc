#include "volley/protocol/expert_map.h"

#include "volley/base/check.h"

namespace volley::protocol {

bool ExpertMap::complete() const {
  return first_missing().empty();
}

std::string ExpertMap::first_missing() const {
  for (size_t index = 0; index < holders.size(); ++index) {
    if (holders[index].empty()) {
      return fmt::format("layer {} expert {}", index / experts, index % experts);
    }
  }
  return {};
}

Result<ExpertMap> ExpertMap::build(MapVersion version, uint32_t layers, uint32_t experts,
                                   std::span<const Holding> holdings) {
  ExpertMap map{
      .version = version, .layers = layers, .experts = experts, .nodes = {}, .holders = {}};
  map.holders.resize(size_t{layers} * experts);
  for (uint32_t node = 0; node < holdings.size(); ++node) {
    const Holding& holding = holdings[node];
    for (const Node& other : map.nodes) {
      if (other.name == holding.node.name) {
        return invalid_argument("expert node {} appears twice in the map", holding.node.name);
      }
    }
    map.nodes.push_back(holding.node);
    for (const uint32_t expert : holding.experts) {
      if (expert >= experts) {
        return invalid_argument("expert node {} says it holds expert {}, of {} experts",
                                holding.node.name, expert, experts);
      }
      for (uint32_t layer = 0; layer < layers; ++layer) {
        std::vector<uint32_t>& list = map.holders[size_t{layer} * experts + expert];
        // Nodes come in ascending order, so an expert that is listed twice shows at the end.
        if (list.empty() || list.back() != node) list.push_back(node);
      }
    }
  }
  return map;
}

std::vector<uint32_t> default_experts(uint32_t experts, uint32_t index, uint32_t count) {
  VOLLEY_CHECK(index < count);
  std::vector<uint32_t> held;
  for (uint32_t expert = index; expert < experts; expert += count) held.push_back(expert);
  return held;
}

}  // namespace volley::protocol
