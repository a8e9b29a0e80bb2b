#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace volley::engine {

/// Chooses experts without a router: by a hash of seed, layer, position and token, so a row's
/// choice does not depend on where or with what it is computed.
class ModelledRouter {
 public:
  /// `skew` is Zipf's exponent, not negative; 0: every expert alike. top_k is at most `experts`.
  ModelledRouter(uint64_t seed, double skew, uint32_t layers, uint32_t experts, uint32_t top_k);

  /// Writes the row's top_k experts, distinct and ascending: drawn one after the other, each in
  /// proportion to its weight among those that are left.
  void choose(uint32_t layer, uint32_t position, int32_t token, uint32_t* chosen) const;

 private:
  uint32_t draw(uint32_t layer, uint32_t word) const;

  const uint64_t seed_;
  const uint32_t experts_, top_k_;
  std::vector<double> upto_;       // [experts] by rank: share of the ranks up to it; ends in 1.
  std::vector<uint32_t> of_rank_;  // [layers][experts]
};

}  // namespace volley::engine
