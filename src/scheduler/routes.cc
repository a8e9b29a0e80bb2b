// Who can compute an expert now: a map version says who holds it, the links say who of them lives.
// Readiness is the same question asked of every expert of the newest map.

#include "routes.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "volley/base/check.h"

namespace volley::scheduler {

using protocol::ExpertMap;

std::string place_name(uint32_t layer, uint32_t expert) {
  return fmt::format("layer {} expert {}", layer, expert);
}

// --- One map version ---

Routes::Routes(std::shared_ptr<const ExpertMap> map, std::span<uint32_t> turns)
    : map_(std::move(map)), turns_(turns), nodes_of_layer_(map_->layers) {
  VOLLEY_CHECK(turns_.size() == map_->holders.size());
  for (uint32_t layer = 0; layer < map_->layers; ++layer) {
    std::vector<uint32_t>& nodes = nodes_of_layer_[layer];
    for (uint32_t expert = 0; expert < map_->experts; ++expert) {
      const auto holders = map_->holders_of(layer, expert);
      nodes.insert(nodes.end(), holders.begin(), holders.end());
    }
    std::sort(nodes.begin(), nodes.end());
    nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  }
}

void Routes::bind(ExpertLinks& links) {
  const std::vector<ExpertMap::Node>& nodes = map_->nodes;
  link_of_node_.assign(nodes.size(), nullptr);
  for (size_t node = 0; node < nodes.size(); ++node) {
    for (auto& [id, link] : links) {
      if (link.node != nodes[node].name || link.incarnation != nodes[node].incarnation) continue;
      link_of_node_[node] = &link;
      break;
    }
  }
}

ExpertLink& Routes::take_turn(uint32_t layer, uint32_t expert) {
  const auto holders = map_->holders_of(layer, expert);
  const auto live = [&](uint32_t node) { return link_of(node) != nullptr; };
  const auto live_count =
      static_cast<uint32_t>(std::count_if(holders.begin(), holders.end(), live));
  VOLLEY_CHECK(live_count > 0);
  uint32_t skip = 0;
  if (live_count > 1) skip = turns_[size_t{layer} * map_->experts + expert]++ % live_count;
  for (const uint32_t node : holders) {
    if (live(node) && skip-- == 0) return *link_of(node);
  }
  std::abort();  // The count above says that one is found.
}

// --- The versions in use ---

RouteTable::RouteTable(uint32_t layers, uint32_t experts, ExpertLinks& links)
    : layers_(layers),
      experts_(experts),
      links_(links),
      turns_(size_t{layers} * experts, 0),
      readiness_(find_readiness()) {}

void RouteTable::set_map(std::shared_ptr<const ExpertMap> map) {
  VOLLEY_CHECK(map != nullptr);
  if (newest() != nullptr && map->version <= newest()->map().version) return;
  if (map->layers != layers_ || map->experts != experts_ || map->holders.size() != turns_.size()) {
    map_error_ = unavailable("map {}.{} has {} layers and {} experts, the model {} and {}",
                             map->version.term, map->version.number, map->layers, map->experts,
                             layers_, experts_);
    readiness_ = find_readiness();
    return;
  }
  map_error_ = ok_status();
  routes_.push_back(std::make_unique<Routes>(std::move(map), turns_));
  drop_unused();
  bind_links();
}

void RouteTable::bind_links() {
  for (const std::unique_ptr<Routes>& each : routes_) each->bind(links_);
  readiness_ = find_readiness();
}

Status RouteTable::find_readiness() const {
  if (!map_error_.ok()) return map_error_;
  if (newest() == nullptr) return unavailable("no expert map is known");
  const ExpertMap& map = newest()->map();
  for (uint32_t layer = 0; layer < layers_; ++layer) {
    for (uint32_t expert = 0; expert < experts_; ++expert) {
      if (newest()->has_live_holder(layer, expert)) continue;
      const auto holders = map.holders_of(layer, expert);
      if (holders.empty()) {
        return unavailable("{} has no holder in map {}.{}", place_name(layer, expert),
                           map.version.term, map.version.number);
      }
      return unavailable("{} is held by {}, to which there is no link", place_name(layer, expert),
                         map.nodes[holders.front()].name);
    }
  }
  return ok_status();
}

Routes& RouteTable::use_newest() {
  VOLLEY_CHECK(!routes_.empty());
  Routes& routes = *routes_.back();
  ++routes.step_count_;
  return routes;
}

void RouteTable::release(Routes& routes) {
  VOLLEY_CHECK(routes.step_count_ > 0);
  --routes.step_count_;
  drop_unused();
}

void RouteTable::drop_unused() {
  const Routes* const last = newest();
  std::erase_if(routes_, [&](const std::unique_ptr<Routes>& each) {
    return each.get() != last && each->step_count_ == 0;
  });
}

}  // namespace volley::scheduler
