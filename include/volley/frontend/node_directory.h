#pragma once

// Which attention nodes there are and which of them the next sequence goes to. No threads, no gRPC.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/v1/control.pb.h"

namespace volley::frontend {

/// The attention nodes of the last view, and how many sequences this frontend has on each of them.
/// Thread: none; the caller serialises.
class NodeDirectory {
 public:
  /// One life of one attention node.
  struct Node {
    std::string name;
    Incarnation incarnation;
    std::string address;
    uint64_t life = 0;  ///< Tells two stays of one incarnation apart; given by the directory.
    auto operator<=>(const Node&) const = default;
    bool same_process(const Node& other) const {
      return name == other.name && incarnation == other.incarnation && address == other.address;
    }
  };

  /// Takes a view over; the entry of a node that stays keeps its counts. Returns the nodes that are
  /// in it no more: what runs there is lost.
  std::vector<Node> update(const v1::ClusterView& view);

  /// The ready node with the most KV blocks expected to be free; among equals the one with the
  /// fewest sequences, then the one that was picked longest ago. What the node reported is
  /// corrected by what this frontend has started and ended there since. Counts as in flight until
  /// release(). Errors: kUnavailable with the controller's reason.
  Result<Node> pick(Nanos now);
  void release(const Node& node);
  /// The node could not be reached: others are preferred until `until`.
  void suspect(const Node& node, Nanos until);

  /// Whether a request could be served; else why not.
  bool serving() const { return not_serving_reason().empty(); }
  std::string not_serving_reason() const;
  uint32_t in_flight(const std::string& name) const;
  /// The nodes of the last view, ready or not.
  std::vector<Node> nodes() const;
  /// Of the compute nodes of the last view; empty before the first one joins.
  const std::string& numerics_fingerprint() const { return numerics_fingerprint_; }

 private:
  struct Entry {
    Node node;
    v1::NodeHealth health;
    uint32_t in_flight = 0;
    uint32_t in_flight_at_report = 0;
    Nanos suspect_until = 0;
    uint64_t last_pick = 0;

    int64_t started_since_report() const { return int64_t{in_flight} - in_flight_at_report; }
    int64_t expected_free_blocks() const;
    int64_t expected_sequences() const;
  };

  std::map<std::string, Entry> entries_;
  std::string controller_reason_ = "no view of the cluster yet";
  std::string numerics_fingerprint_;
  uint64_t picks_ = 0;
  uint64_t lives_ = 0;
};

}  // namespace volley::frontend
