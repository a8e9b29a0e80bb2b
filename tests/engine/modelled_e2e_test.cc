// Goal: modelled engines serve over real links, and a request has the same tokens on every
// topology, fabric, batch company and after preemption. Method: short modelled times; one reference
// run, then every variation against it, as p1_test does for real ones.

#include <gtest/gtest.h>

#include "engine/cluster_harness.h"

namespace volley::engine {
namespace {

constexpr uint32_t kNewTokens = 6;

struct Expected {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> digests;
  bool operator==(const Expected&) const = default;
};

const std::vector<GenerationRequest>& requests() {
  static const auto* all =
      new std::vector<GenerationRequest>(random_requests(11, 12, 199, 40, kNewTokens));
  return *all;
}

ModelledCompute compute(double expert_skew = 0) {
  return {.times = std::make_shared<perf::LinearStageTimes>(perf::LinearTimes{.layer = 5e-6,
                                                                              .layer_row = 1e-7,
                                                                              .step = 5e-6,
                                                                              .expert_layer = 5e-6,
                                                                              .expert_row = 1e-7}),
          .expert_skew = expert_skew};
}

std::vector<Expected> run(HarnessOptions options, double expert_skew = 0) {
  options.modelled = compute(expert_skew);
  ClusterHarness cluster(options, random_moe());
  std::vector<Stream> streams(requests().size());
  for (size_t i = 0; i < streams.size(); ++i) {
    cluster.submit(static_cast<uint32_t>(i) % options.attention_nodes, requests()[i], streams[i]);
  }
  std::vector<Expected> results;
  for (Stream& stream : streams) {
    EXPECT_TRUE(stream.wait());
    EXPECT_TRUE(stream.status.ok()) << stream.status;
    EXPECT_EQ(stream.finish, scheduler::FinishReason::kLength);
    results.push_back({stream.tokens, stream.digests});
  }
  cluster.stop();  // The last status is published then.
  for (uint32_t i = 0; i < options.expert_nodes; ++i) {
    const ExpertStatus status = cluster.expert(i).status();
    EXPECT_GT(status.runs, 0u);
    EXPECT_EQ(status.weight_bytes, 0u);
  }
  EXPECT_EQ(cluster.attention(0).status().kv_bytes, 0u);
  return results;
}

const std::vector<Expected>& expected() {
  static const auto* all = new std::vector<Expected>(run({.micro_batches = 1}));
  return *all;
}

TEST(Modelled, TheReferenceIsNotDegenerate) {
  for (size_t i = 0; i < requests().size(); ++i) {
    ASSERT_EQ(expected()[i].tokens.size(), kNewTokens);
    for (size_t j = 0; j < i; ++j) EXPECT_NE(expected()[i].tokens, expected()[j].tokens);
  }
}

TEST(Modelled, EveryTopologyGivesTheSameTokens) {
  for (const char* fabric : {"local", "shm", "tcp"}) {
    SCOPED_TRACE(fabric);
    EXPECT_EQ(run({.fabric = fabric}), expected());
    EXPECT_EQ(run({.fabric = fabric, .attention_nodes = 2, .expert_nodes = 3, .micro_batches = 3}),
              expected());
    EXPECT_EQ(run({.fabric = fabric, .attention_nodes = 2, .expert_nodes = 2, .replicated = true}),
              expected());
  }
  EXPECT_EQ(run({.expert_nodes = 2, .tokens_per_step_max = 7, .slot_rows = 3}), expected());
  EXPECT_EQ(run({.expert_nodes = 2, .fp8_dispatch = true}), expected());
  EXPECT_EQ(run({.expert_nodes = 3}, 1.5), expected());
  HarnessOptions sums{.fabric = "tcp", .expert_nodes = 2};
  sums.combine = protocol::Combine::kPreReduce;
  EXPECT_EQ(run(sums), expected());
  // Room for one full sequence and a little: several can only run by preemption.
  EXPECT_EQ(run({.expert_nodes = 2, .sequence_tokens_max = 64, .kv_blocks = 5}), expected());
}

TEST(Modelled, AReplayGoesOnWithTheSameTokens) {
  HarnessOptions options{.expert_nodes = 2};
  options.modelled = compute();
  ClusterHarness cluster(options, random_moe());
  GenerationRequest replay = requests()[0];
  const Expected& whole = expected()[0];
  replay.tokens.insert(replay.tokens.end(), whole.tokens.begin(), whole.tokens.begin() + 3);
  replay.max_new_tokens = kNewTokens - 3;
  Stream stream;
  cluster.submit(0, replay, stream);
  ASSERT_TRUE(stream.wait());
  EXPECT_EQ(stream.digests, std::vector<uint64_t>(whole.digests.begin() + 3, whole.digests.end()));
}

TEST(Modelled, RowsAreCarriedInFull) {
  // One expert node gets every entry of every row, whichever experts are chosen.
  const auto bytes = [](bool modelled) {
    HarnessOptions options{.fabric = "tcp", .micro_batches = 1};
    if (modelled) options.modelled = compute();
    ClusterHarness cluster(options, random_moe());
    Stream stream;
    GenerationRequest request = requests()[0];
    request.max_new_tokens = 1;
    cluster.submit(0, request, stream);
    EXPECT_TRUE(stream.wait());
    cluster.stop();
    const AttentionStatus status = cluster.attention(0).status();
    return std::pair(status.traffic.bytes_sent, status.traffic.bytes_received);
  };
  EXPECT_EQ(bytes(true), bytes(false));
}

}  // namespace
}  // namespace volley::engine
