#include "volley/planner/straggler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "volley/base/check.h"

namespace volley::planner {

double normal_quantile(double probability) {
  VOLLEY_CHECK(probability > 0 && probability < 1);
  constexpr double kA[] = {-3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                           1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00};
  constexpr double kB[] = {-5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02,
                           6.680131188771972e+01, -1.328068155288572e+01};
  constexpr double kC[] = {-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                           -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00};
  constexpr double kD[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
                           3.754408661907416e+00};
  constexpr double kTail = 0.02425;  // Where the approximation of the tails takes over.
  const auto tail = [&](double p) {
    const double q = std::sqrt(-2 * std::log(p));
    return (((((kC[0] * q + kC[1]) * q + kC[2]) * q + kC[3]) * q + kC[4]) * q + kC[5]) /
           ((((kD[0] * q + kD[1]) * q + kD[2]) * q + kD[3]) * q + 1);
  };
  if (probability < kTail) return tail(probability);
  if (probability > 1 - kTail) return -tail(1 - probability);
  const double q = probability - 0.5;
  const double r = q * q;
  return (((((kA[0] * r + kA[1]) * r + kA[2]) * r + kA[3]) * r + kA[4]) * r + kA[5]) * q /
         (((((kB[0] * r + kB[1]) * r + kB[2]) * r + kB[3]) * r + kB[4]) * r + 1);
}

double expected_max(uint32_t count) {
  if (count <= 1) return 0;
  return normal_quantile((count - 0.375) / (count + 0.25));
}

double quantile_max(uint32_t count, double probability) {
  return normal_quantile(std::pow(probability, 1.0 / std::max(count, 1u)));
}

std::vector<double> expert_popularity(uint32_t experts, uint32_t top_k, double skew) {
  VOLLEY_CHECK(experts > 0 && top_k > 0 && top_k <= experts);
  std::vector<double> share(experts);
  for (uint32_t i = 0; i < experts; ++i) share[i] = std::pow(i + 1.0, -skew);
  const double most = 1.0 / top_k;
  // Capping the first ones raises the others, which may then meet the cap in turn.
  uint32_t capped = 0;
  for (;;) {
    const double sum = std::accumulate(share.begin() + capped, share.end(), 0.0);
    const double scale = (1 - capped * most) / sum;
    if (capped + 1 >= experts || share[capped] * scale <= most) {
      for (uint32_t i = 0; i < experts; ++i) share[i] = i < capped ? most : share[i] * scale;
      return share;
    }
    ++capped;
  }
}

Placement place_experts(const std::vector<double>& popularity, uint32_t top_k, uint32_t nodes,
                        uint32_t replicas) {
  const auto experts = static_cast<uint32_t>(popularity.size());
  VOLLEY_CHECK(nodes > 0 && replicas > 0 && nodes <= experts * replicas);
  std::vector<uint32_t> copies(experts, 1);
  const auto load = [&](uint32_t expert) { return popularity[expert] / copies[expert]; };
  for (uint32_t extra = experts * (replicas - 1); extra > 0; --extra) {
    uint32_t next = experts;
    for (uint32_t i = 0; i < experts; ++i) {
      if (copies[i] < nodes && (next == experts || load(i) > load(next))) next = i;
    }
    if (next == experts) break;  // Every node holds everything.
    ++copies[next];
  }
  const uint32_t total = std::accumulate(copies.begin(), copies.end(), 0u);
  Placement placement{.nodes = nodes,
                      .slots = (total + nodes - 1) / nodes,
                      .experts = std::vector<std::vector<uint32_t>>(nodes),
                      .heaviest = {},
                      .heaviest_sum = 0};
  std::vector<uint32_t> order(experts);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return load(a) > load(b); });
  std::vector<double> loads(nodes, 0);
  std::vector<uint32_t> by_load(nodes);
  std::iota(by_load.begin(), by_load.end(), 0u);
  for (const uint32_t expert : order) {
    // The least loaded nodes with room, one copy each.
    std::stable_sort(by_load.begin(), by_load.end(), [&](uint32_t a, uint32_t b) {
      const bool full_a = placement.experts[a].size() >= placement.slots;
      const bool full_b = placement.experts[b].size() >= placement.slots;
      return full_a != full_b ? full_b : loads[a] < loads[b];
    });
    for (uint32_t copy = 0; copy < copies[expert]; ++copy) {
      placement.experts[by_load[copy]].push_back(expert);
      loads[by_load[copy]] += load(expert);
    }
  }
  const size_t heaviest =
      static_cast<size_t>(std::max_element(loads.begin(), loads.end()) - loads.begin());
  for (std::vector<uint32_t>& held : placement.experts) {
    std::sort(held.begin(), held.end());
    // Many copies of few experts can fill nodes unevenly: the memory that counts is the fullest's.
    placement.slots = std::max(placement.slots, static_cast<uint32_t>(held.size()));
  }
  for (const uint32_t expert : placement.experts[heaviest]) {
    placement.heaviest.push_back(load(expert) * top_k);
    placement.heaviest_sum += placement.heaviest.back();
  }
  return placement;
}

double expert_straggler(const Placement& placement, uint32_t experts, uint32_t top_k, double tokens,
                        double deviations) {
  const double mean = tokens * placement.heaviest_sum;
  if (experts <= 1 || mean <= 0) return 1;
  const double share = std::min(placement.heaviest_sum / top_k, 1.0);
  const double variance = mean * (1 - share) * (experts - top_k) / (experts - 1.0);
  // No node gets more than all rows of each of its experts.
  const double most = tokens * static_cast<double>(placement.heaviest.size());
  return std::min(mean + deviations * std::sqrt(variance), std::max(mean, most)) / mean;
}

double nodes_touched(uint32_t experts, uint32_t top_k, uint32_t nodes) {
  const double held = static_cast<double>(experts) / nodes;
  double missed = 1;
  for (uint32_t j = 0; j < top_k; ++j) {
    missed *= std::max(0.0, experts - held - j) / (experts - j);
  }
  return nodes * (1 - missed);
}

}  // namespace volley::planner
