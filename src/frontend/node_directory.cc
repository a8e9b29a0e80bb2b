#include "volley/frontend/node_directory.h"

#include <algorithm>
#include <tuple>

namespace volley::frontend {

// A sequence takes as many blocks as those that run there do on average.
int64_t NodeDirectory::Entry::expected_free_blocks() const {
  const int64_t used = int64_t{health.kv_blocks_total()} - health.kv_blocks_free();
  const int64_t per_sequence = std::max<int64_t>(1, used / std::max<int64_t>(1, health.running()));
  return int64_t{health.kv_blocks_free()} - started_since_report() * per_sequence;
}

int64_t NodeDirectory::Entry::expected_sequences() const {
  const int64_t reported = int64_t{health.running()} + health.waiting();
  return std::max<int64_t>(in_flight, reported + started_since_report());
}

std::vector<NodeDirectory::Node> NodeDirectory::update(const v1::ClusterView& view) {
  std::map<std::string, Entry> next;
  numerics_fingerprint_.clear();
  for (const v1::ClusterMember& member : view.members()) {
    const v1::NodeRegistration& registration = member.registration();
    if (registration.role() == v1::ROLE_FRONTEND) continue;
    numerics_fingerprint_ = registration.numerics_fingerprint();
    if (registration.role() != v1::ROLE_ATTENTION || registration.grpc_address().empty()) continue;
    Entry entry{.node = {.name = registration.name(),
                         .incarnation = {registration.incarnation()},
                         .address = registration.grpc_address()},
                .health = {}};
    const auto known = entries_.find(entry.node.name);
    if (known != entries_.end() && known->second.node.same_process(entry.node)) {
      entry = known->second;
    } else {
      entry.node.life = ++lives_;
    }
    // A view also comes when another node has reported; then this node's numbers are as old as
    // before.
    if (entry.health.SerializeAsString() != member.health().SerializeAsString()) {
      entry.health = member.health();
      entry.in_flight_at_report = entry.in_flight;
    }
    next.emplace(entry.node.name, std::move(entry));
  }
  std::vector<Node> gone;
  for (const auto& [name, entry] : entries_) {
    const auto still = next.find(name);
    if (still == next.end() || still->second.node != entry.node) gone.push_back(entry.node);
  }
  entries_ = std::move(next);
  controller_reason_ = view.serving() ? "" : view.reason();
  if (!view.serving() && controller_reason_.empty())
    controller_reason_ = "the controller gives no reason";
  return gone;
}

std::string NodeDirectory::not_serving_reason() const {
  if (!controller_reason_.empty()) return controller_reason_;
  const bool ready = std::any_of(entries_.begin(), entries_.end(),
                                 [](const auto& item) { return item.second.health.ready(); });
  return ready ? "" : "no attention node is ready";
}

Result<NodeDirectory::Node> NodeDirectory::pick(Nanos now) {
  if (const std::string reason = not_serving_reason(); !reason.empty()) {
    return unavailable("no node can serve: {}", reason);
  }
  const auto rank = [now](const Entry& entry) {
    return std::tuple(entry.suspect_until > now, -entry.expected_free_blocks(),
                      entry.expected_sequences(), entry.last_pick);
  };
  Entry* best = nullptr;
  for (auto& [name, entry] : entries_) {
    if (!entry.health.ready()) continue;
    if (best == nullptr || rank(entry) < rank(*best)) best = &entry;
  }
  ++best->in_flight;
  best->last_pick = ++picks_;
  return best->node;
}

void NodeDirectory::release(const Node& node) {
  const auto entry = entries_.find(node.name);
  if (entry != entries_.end() && entry->second.node == node) --entry->second.in_flight;
}

void NodeDirectory::suspect(const Node& node, Nanos until) {
  const auto entry = entries_.find(node.name);
  if (entry != entries_.end() && entry->second.node == node) entry->second.suspect_until = until;
}

std::vector<NodeDirectory::Node> NodeDirectory::nodes() const {
  std::vector<Node> result;
  for (const auto& [name, entry] : entries_) result.push_back(entry.node);
  return result;
}

uint32_t NodeDirectory::in_flight(const std::string& name) const {
  const auto entry = entries_.find(name);
  return entry == entries_.end() ? 0 : entry->second.in_flight;
}

}  // namespace volley::frontend
