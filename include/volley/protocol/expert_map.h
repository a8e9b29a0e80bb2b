#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/protocol/wire.h"

namespace volley::protocol {

/// Which node holds which expert of which layer: an immutable value with a version.
struct ExpertMap {
  struct Node {
    std::string name;
    Incarnation incarnation;
  };

  MapVersion version;
  uint32_t layers = 0;
  uint32_t experts = 0;
  std::vector<Node> nodes;
  /// [layers * experts]: indices into `nodes`, ascending. Empty: nobody holds it now.
  std::vector<std::vector<uint32_t>> holders;

  std::span<const uint32_t> holders_of(uint32_t layer, uint32_t expert) const {
    return holders[size_t{layer} * experts + expert];
  }
  /// Every expert of every layer has a holder.
  bool complete() const;
  /// "layer 3 expert 5", the first one without a holder; empty when complete.
  std::string first_missing() const;

  /// Builds a map from what each node says it holds.
  /// Errors: kInvalidArgument naming the node and the expert id that is out of range, or a name that
  /// appears twice.
  struct Holding {
    Node node;
    std::vector<uint32_t> experts;  ///< Held in all layers.
  };
  static Result<ExpertMap> build(MapVersion version, uint32_t layers, uint32_t experts,
                                 std::span<const Holding> holdings);
};

/// The experts that node `index` of `count` holds when the configuration does not say: expert e belongs to
/// node e % count, so counts that do not divide differ by one expert at most.
std::vector<uint32_t> default_experts(uint32_t experts, uint32_t index, uint32_t count);

}  // namespace volley::protocol
