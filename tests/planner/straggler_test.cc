// Goal: stragglers, popularity and placement are what they claim to be.
// Method: known values of the normal distribution, and random draws of the process itself.

#include "volley/planner/straggler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "volley/base/random.h"

namespace volley::planner {
namespace {

TEST(Straggler, NormalQuantiles) {
  EXPECT_NEAR(normal_quantile(0.5), 0, 1e-9);
  EXPECT_NEAR(normal_quantile(0.975), 1.959963985, 1e-8);
  EXPECT_NEAR(normal_quantile(0.99), 2.326347874, 1e-8);
  EXPECT_NEAR(normal_quantile(0.001), -3.090232306, 1e-8);
}

TEST(Straggler, LargestOfSeveralNormalValues) {
  // Exact means of the largest of n standard normal values.
  EXPECT_EQ(expected_max(1), 0);
  for (const auto& [count, mean] :
       {std::pair{2u, 0.56419}, {3u, 0.84628}, {8u, 1.42360}, {64u, 2.34373}, {256u, 2.81542}}) {
    EXPECT_NEAR(expected_max(count), mean, 0.05 * mean) << count;
  }
  EXPECT_NEAR(quantile_max(1, 0.99), 2.326347874, 1e-8);
  EXPECT_GT(quantile_max(8, 0.99), quantile_max(4, 0.99));
}

TEST(Straggler, PopularitySumsToOneAndNoExpertIsChosenTwice) {
  for (const double skew : {0.0, 0.3, 1.0, 3.0}) {
    for (const uint32_t top_k : {1u, 2u, 8u}) {
      const auto share = expert_popularity(64, top_k, skew);
      EXPECT_NEAR(std::accumulate(share.begin(), share.end(), 0.0), 1, 1e-12);
      EXPECT_TRUE(std::is_sorted(share.rbegin(), share.rend()));
      EXPECT_LE(share.front(), 1.0 / top_k + 1e-12);
    }
  }
  EXPECT_NEAR(expert_popularity(8, 8, 2)[7], 1.0 / 8, 1e-12);
}

TEST(Straggler, PlacementHoldsEveryExpertAndBalances) {
  SplitMix64 random(3);
  for (int i = 0; i < 200; ++i) {
    const auto experts = static_cast<uint32_t>(2 + random.below(64));
    const auto top_k = static_cast<uint32_t>(1 + random.below(std::min(8u, experts)));
    const auto replicas = static_cast<uint32_t>(1 + random.below(3));
    const auto nodes = static_cast<uint32_t>(1 + random.below(experts * replicas));
    const auto popularity = expert_popularity(experts, top_k, 1.5 * random.unit());
    const Placement placement = place_experts(popularity, top_k, nodes, replicas);
    ASSERT_EQ(placement.experts.size(), nodes);
    std::set<uint32_t> held;
    for (const auto& node : placement.experts) {
      EXPECT_LE(node.size(), placement.slots);
      EXPECT_EQ(std::set<uint32_t>(node.begin(), node.end()).size(), node.size());
      held.insert(node.begin(), node.end());
    }
    EXPECT_EQ(held.size(), experts);
    // The most loaded node has at least the mean.
    EXPECT_GE(placement.heaviest_sum, static_cast<double>(top_k) / nodes - 1e-12);
  }
}

TEST(Straggler, ReplicasOfHotExpertsLowerTheHeaviestLoad) {
  const auto popularity = expert_popularity(16, 2, 1.0);
  EXPECT_LT(place_experts(popularity, 2, 16, 2).heaviest_sum,
            0.7 * place_experts(popularity, 2, 16, 1).heaviest_sum);
}

TEST(Straggler, SlowestExpertNodeIsThatOfRandomRouting) {
  constexpr uint32_t kExperts = 32, kTopK = 4, kTokens = 200;
  SplitMix64 random(11);
  for (const uint32_t nodes : {4u, 8u, 32u}) {
    double sum = 0;
    constexpr int kTrials = 2000;
    for (int trial = 0; trial < kTrials; ++trial) {
      std::vector<double> load(nodes, 0);
      for (uint32_t token = 0; token < kTokens; ++token) {
        std::set<uint64_t> chosen;
        while (chosen.size() < kTopK) chosen.insert(random.below(kExperts));
        for (const uint64_t expert : chosen) load[expert % nodes] += 1;
      }
      sum += *std::max_element(load.begin(), load.end());
    }
    const double drawn = sum / kTrials / (1.0 * kTokens * kTopK / nodes);
    const Placement placement =
        place_experts(expert_popularity(kExperts, kTopK, 0), kTopK, nodes, 1);
    EXPECT_NEAR(expert_straggler(placement, kExperts, kTopK, kTokens, expected_max(nodes)), drawn,
                0.02 * drawn)
        << nodes;
  }
}

TEST(Straggler, OneNodeWithEverythingNeverStraggles) {
  const Placement placement = place_experts(expert_popularity(8, 2, 1.2), 2, 1, 1);
  EXPECT_DOUBLE_EQ(placement.heaviest_sum, 2);
  EXPECT_DOUBLE_EQ(expert_straggler(placement, 8, 2, 100, 3), 1);
}

TEST(Straggler, NodesThatATokenTouches) {
  EXPECT_DOUBLE_EQ(nodes_touched(8, 2, 8), 2);  // One expert each: K nodes.
  EXPECT_DOUBLE_EQ(nodes_touched(8, 2, 1), 1);  // All on one.
  EXPECT_DOUBLE_EQ(nodes_touched(4, 2, 2), 2 * (1 - 1.0 / 6));
  EXPECT_DOUBLE_EQ(nodes_touched(8, 8, 2), 2);  // Every expert is chosen.
}

}  // namespace
}  // namespace volley::planner
