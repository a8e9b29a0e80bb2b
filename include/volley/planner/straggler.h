#pragma once

// What waiting for the slowest of several nodes adds to the mean. A layer goes on when the slowest
// expert node has answered, and experts start when the slowest attention node has sent.

#include <cstdint>
#include <vector>

namespace volley::planner {

/// The quantile function of the standard normal distribution, 0 < p < 1. (Acklam's rational
/// approximation, relative error below 1.2e-9.)
double normal_quantile(double probability);
/// E[max of n standard normal values]: Blom's approximation (1958), within 2 % for n >= 2; 0 for 1.
double expected_max(uint32_t count);
/// The value that the largest of n standard normal values stays below with `probability`.
double quantile_max(uint32_t count, double probability);

/// How popular each of `experts` experts is: shares that sum to 1, falling. Zipf with exponent
/// `skew`, 0 is even; no share above 1 / top_k, because a token chooses an expert once at most.
std::vector<double> expert_popularity(uint32_t experts, uint32_t top_k, double skew);

/// Copies of experts on nodes, and what the most loaded node gets.
struct Placement {
  uint32_t nodes = 1;
  uint32_t slots = 1;                          ///< Experts that a node holds, at most.
  std::vector<std::vector<uint32_t>> experts;  ///< By node, ascending.
  /// Of the most loaded node: rows that each of its experts gets per token of the batch.
  std::vector<double> heaviest;
  double heaviest_sum = 0;  ///< Over `heaviest`; top_k / nodes when the load is even.
};
/// Places experts * replicas copies: an additional copy goes to the expert with the most load per
/// copy (at most one per node), then copies go, the largest first, to the least loaded node with
/// room. Copies share their expert's rows evenly. 1 <= nodes <= experts * replicas.
Placement place_experts(const std::vector<double>& popularity, uint32_t top_k, uint32_t nodes,
                        uint32_t replicas);

/// Rows of the most loaded of the nodes over the rows of its mean, for a batch of `tokens`. Each
/// token draws top_k distinct experts, so a node's count has the hypergeometric variance
/// tokens K f (1 - f) (E - K) / (E - 1), f = its share; the largest of `nodes` such counts lies
/// `deviations` standard deviations above the mean (expected_max() for the mean). An upper bound
/// where popularity is uneven: then fewer nodes compete to be the slowest.
double expert_straggler(const Placement& placement, uint32_t experts, uint32_t top_k, double tokens,
                        double deviations);

/// Nodes that get a row of a token when its top_k experts lie on `nodes` nodes with an equal share
/// each: nodes (1 - C(E - E/n, K) / C(E, K)).
double nodes_touched(uint32_t experts, uint32_t top_k, uint32_t nodes);

}  // namespace volley::planner
