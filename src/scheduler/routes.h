#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/protocol/expert_map.h"
#include "volley/protocol/link.h"

namespace volley::scheduler {

/// An open link to an expert node, as AttentionCore keeps it.
struct ExpertLink {
  LinkId id;
  std::string node;
  Incarnation incarnation;
  protocol::DispatchLink slots;
  std::optional<Nanos> heard;
  /// Where a micro-batch's flights had this link last: as a rule where the next ones have it.
  uint32_t flight_hint = 0;
};
using ExpertLinks = std::map<LinkId, ExpertLink>;

/// "layer 3 expert 5", for errors.
std::string place_name(uint32_t layer, uint32_t expert);

/// One map version in use: its nodes with their links, and the choice among the holders of an
/// expert. Owns nothing of the links; RouteTable binds them anew whenever one opens or closes.
class Routes {
 public:
  /// `turns`: [layers * experts], the round robin's place. It belongs to the table, so that a new
  /// map goes on where the last one was.
  Routes(std::shared_ptr<const protocol::ExpertMap> map, std::span<uint32_t> turns);

  const protocol::ExpertMap& map() const { return *map_; }
  /// Indices into the map's nodes, ascending: those that hold any expert of the layer.
  std::span<const uint32_t> nodes_of_layer(uint32_t layer) const { return nodes_of_layer_[layer]; }
  /// nullptr: no live link.
  ExpertLink* link_of(uint32_t node) const { return link_of_node_[node]; }

  void bind(ExpertLinks& links);
  bool has_live_holder(uint32_t layer, uint32_t expert) const {
    for (const uint32_t node : map_->holders_of(layer, expert)) {
      if (link_of(node) != nullptr) return true;
    }
    return false;
  }
  /// Round robin over the live holders, of which there must be one.
  ExpertLink& choose_holder(uint32_t layer, uint32_t expert) {
    const auto holders = map_->holders_of(layer, expert);
    // Asked for every (row, expert) pair, most of which have one holder.
    if (holders.size() == 1 && link_of(holders.front()) != nullptr)
      return *link_of(holders.front());
    return take_turn(layer, expert);
  }

 private:
  std::shared_ptr<const protocol::ExpertMap> map_;  ///< Shared with the shell, which made it.
  std::span<uint32_t> turns_;
  std::vector<ExpertLink*> link_of_node_;
  std::vector<std::vector<uint32_t>> nodes_of_layer_;

  ExpertLink& take_turn(uint32_t layer, uint32_t expert);

  friend class RouteTable;
  uint32_t step_count_ = 0;  ///< Steps that use it, counted by RouteTable.
};

/// The map versions that may still be needed, and whether the newest one lets the node serve.
/// Owns the Routes. Invariants: the newest map comes last and stays; an older one stays as long as
/// a step uses it; all are bound to the links as they are.
class RouteTable {
 public:
  /// `links` must outlive the table.
  RouteTable(uint32_t layers, uint32_t experts, ExpertLinks& links);

  /// Ignores a map that is not newer than the last one. One of other dimensions is not used, and
  /// readiness() says so.
  void set_map(std::shared_ptr<const protocol::ExpertMap> map);
  /// After every change of the links.
  void bind_links();

  /// Every expert of every layer has a live holder by the newest map.
  /// Errors: kUnavailable naming what is missing.
  const Status& readiness() const { return readiness_; }

  /// nullptr: no map is known.
  const Routes* newest() const { return routes_.empty() ? nullptr : routes_.back().get(); }
  /// The newest map, of which there must be one, for a step; each use ends with release().
  Routes& use_newest();
  void release(Routes& routes);

 private:
  Status find_readiness() const;
  void drop_unused();

  const uint32_t layers_;
  const uint32_t experts_;
  ExpertLinks& links_;
  std::vector<uint32_t> turns_;  ///< [layers * experts]
  std::vector<std::unique_ptr<Routes>> routes_;
  Status map_error_ = ok_status();  ///< Why the last map that was offered is not used.
  Status readiness_;
};

}  // namespace volley::scheduler
