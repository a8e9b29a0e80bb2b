#include "expert_links.h"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace volley::engine {
namespace {

// A node that the controller names is normally up; the first retries are quick because it may just
// be coming back, the later ones slow enough to cost nothing.
constexpr Nanos kBackoffMin = 20 * kMillisecond;
constexpr Nanos kBackoffMax = kSecond;

}  // namespace

void ExpertLinks::update(const std::vector<ExpertPeer>& experts, Nanos now,
                         const std::function<void(LinkId)>& on_close) {
  for (auto it = nodes_.begin(); it != nodes_.end();) {
    const Node& node = it->second;
    const bool kept = std::ranges::any_of(experts, [&](const ExpertPeer& peer) {
      return peer.name == it->first && peer.incarnation == node.peer.incarnation &&
             peer.fabric_address == node.peer.fabric_address;
    });
    if (kept) {
      ++it;
      continue;
    }
    if (node.state != State::kWaiting) fabric_.close(node.link);
    if (node.state == State::kOpen) on_close(node.link);
    it = nodes_.erase(it);
  }
  for (const ExpertPeer& peer : experts) {
    nodes_.try_emplace(peer.name, Node{.peer = peer, .retry_at = now});
  }
  retry(now);
}

ExpertLinks::Node* ExpertLinks::find(LinkId link) {
  for (auto& [name, node] : nodes_) {
    if (node.state != State::kWaiting && node.link == link) return &node;
  }
  return nullptr;
}

void ExpertLinks::opened(LinkId link) {
  if (Node* node = find(link)) {
    node->state = State::kOpen;
    node->backoff = 0;
  }
}

void ExpertLinks::closed(LinkId link, Nanos now) {
  if (Node* node = find(link)) {
    node->state = State::kWaiting;
    node->backoff = std::clamp(2 * node->backoff, kBackoffMin, kBackoffMax);
    node->retry_at = now + node->backoff;
  }
}

void ExpertLinks::retry(Nanos now) {
  for (auto& [name, node] : nodes_) {
    if (node.state != State::kWaiting || now < node.retry_at) continue;
    const Result<LinkId> link = fabric_.connect(node.peer.fabric_address, node.peer.link_key);
    if (link.ok()) {
      node.link = *link;
      node.state = State::kConnecting;
      continue;
    }
    spdlog::warn("{}: cannot open a link to {} at {}: {}", self_, name, node.peer.fabric_address,
                 message_of(link.status()));
    node.backoff = std::clamp(2 * node.backoff, kBackoffMin, kBackoffMax);
    node.retry_at = now + node.backoff;
  }
}

void ExpertLinks::close_all() {
  for (auto& [name, node] : nodes_) {
    if (node.state != State::kWaiting) fabric_.close(node.link);
  }
  nodes_.clear();
}

uint32_t ExpertLinks::open_count() const {
  return static_cast<uint32_t>(std::ranges::count_if(
      nodes_, [](const auto& entry) { return entry.second.state == State::kOpen; }));
}

std::string ExpertLinks::name_of(LinkId link) const {
  for (const auto& [name, node] : nodes_) {
    if (node.state != State::kWaiting && node.link == link) return "to " + name;
  }
  return fmt::format("{}", link.value);
}

}  // namespace volley::engine
