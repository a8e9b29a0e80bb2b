#pragma once

// Keeps an attention node linked with the expert pool: connects to what the cluster's view names,
// retries what failed, closes what left. Thread: the engine thread.

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "volley/engine/cluster_update.h"
#include "volley/transport/fabric.h"

namespace volley::engine {

class ExpertLinks {
 public:
  ExpertLinks(transport::Fabric& fabric, std::string self)
      : fabric_(fabric), self_(std::move(self)) {}

  /// The pool is now `experts`: links to nodes (or incarnations) that are not in it are closed, and
  /// `on_close` is called for those that were open.
  void update(const std::vector<ExpertPeer>& experts, Nanos now,
              const std::function<void(LinkId)>& on_close);
  void opened(LinkId link);
  /// The fabric has closed the link; it is tried again while its node is in the pool.
  void closed(LinkId link, Nanos now);
  /// Opens what is due.
  void retry(Nanos now);
  void close_all();

  /// Whether the link is one of the pool's, opening or open.
  bool has(LinkId link) { return find(link) != nullptr; }
  uint32_t open_count() const;
  std::string name_of(LinkId link) const;
  template <class F>
  void for_each_open(F&& function) const {
    for (const auto& [name, node] : nodes_) {
      if (node.state == State::kOpen) function(node.link);
    }
  }

 private:
  enum class State { kWaiting, kConnecting, kOpen };
  struct Node {
    ExpertPeer peer;
    State state = State::kWaiting;
    LinkId link{};
    Nanos retry_at = 0;
    Nanos backoff = 0;
  };
  Node* find(LinkId link);

  transport::Fabric& fabric_;
  const std::string self_;
  std::map<std::string, Node> nodes_;
};

}  // namespace volley::engine
