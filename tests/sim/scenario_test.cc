// Goal: the faults that an operator thinks of first, each as a script that can be read.
// Method: the cluster of the simulation, driven by hand; no random faults.
#include <gtest/gtest.h>

#include "sim/cluster.h"

namespace volley::sim {
namespace {

class Scenario : public ::testing::Test {
 protected:
  void start(ClusterOptions options) {
    options.scheduler.sequence_tokens_max = 200;
    options.scheduler.block_count = 200;
    sim_ = std::make_unique<Cluster>(options);
    ASSERT_TRUE(sim_->run_until([this] { return sim_->ready(); }, 50 * kMillisecond))
        << sim_->describe();
  }
  void TearDown() override {
    sim_->check_at_rest();
    EXPECT_EQ(sim_->checkers().violations.text(), "") << sim_->describe();
  }
  /// Long enough to be in the middle of it for many milliseconds.
  uint64_t submit(uint32_t attention) {
    const uint64_t id = sim_->submit(attention, {10, 20, 30}, 60);
    sim_->run_for(2 * kMillisecond);
    return id;
  }
  bool recovered() {
    return sim_->run_until([this] { return sim_->ready(); }, 50 * kMillisecond);
  }
  bool at_rest() {
    return sim_->run_until([this] { return sim_->at_rest(); }, 500 * kMillisecond);
  }
  bool finished(uint64_t id) { return sim_->checkers().sequences.ended_ok(id); }
  bool ended(uint64_t id) { return sim_->checkers().sequences.ended(id); }

  std::unique_ptr<Cluster> sim_;
};

TEST_F(Scenario, KillExpertDuringDispatchWithAReplica) {
  start({.expert_nodes = 3, .replicas = 2});
  const uint64_t id = submit(0);
  sim_->kill_expert(1);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(id));  // Its dispatches went again, to the other holder.
  sim_->start_expert(1);
  EXPECT_TRUE(recovered());
}

TEST_F(Scenario, KillExpertWithoutAReplica) {
  start({.expert_nodes = 2});
  const uint64_t id = submit(0);
  sim_->kill_expert(1);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(ended(id));
  EXPECT_FALSE(finished(id));  // With a status, soon: nobody holds its experts.
  const uint64_t refused = submit(0);
  EXPECT_FALSE(ended(refused));  // It was not accepted.
  sim_->start_expert(1);
  ASSERT_TRUE(recovered());
  const uint64_t next = submit(0);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(next));
}

TEST_F(Scenario, KillAttentionNodeLeavesTheOtherAlone) {
  start({});
  submit(0);
  const uint64_t other = submit(1);
  sim_->kill_attention(0);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(other));
  sim_->start_attention(0);
  ASSERT_TRUE(recovered());
  const uint64_t next = submit(0);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(next));
}

TEST_F(Scenario, LateJoinersServeAtOnce) {
  start({.attention_nodes = 3, .expert_nodes = 3, .replicas = 3});
  sim_->kill_attention(2);
  sim_->kill_expert(2);
  const uint64_t early = submit(0);
  sim_->start_expert(2);
  sim_->start_attention(2);
  ASSERT_TRUE(recovered());
  EXPECT_FALSE(ended(early));
  const uint64_t late = submit(2);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(early));
  EXPECT_TRUE(finished(late));
}

TEST_F(Scenario, AllRestart) {
  start({.attention_nodes = 2, .expert_nodes = 3});
  submit(0);
  submit(1);
  for (uint32_t index = 0; index < 3; ++index) sim_->kill_expert(index, true);
  for (uint32_t index = 0; index < 2; ++index) sim_->kill_attention(index, true);
  for (uint32_t index = 0; index < 2; ++index) sim_->start_attention(index);
  for (uint32_t index = 0; index < 3; ++index) sim_->start_expert(index);
  ASSERT_TRUE(recovered()) << sim_->describe();
  const uint64_t first = submit(0);
  const uint64_t second = submit(1);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(first) && finished(second));
}

TEST_F(Scenario, OneWayPartitionIsFoundBySilence) {
  start({.attention_nodes = 1, .expert_nodes = 2, .replicas = 2});
  const uint64_t id = submit(0);
  sim_->network().partition(0, 1, true, true);
  // The link timeout, and a little: then the sequence goes on with the other holder.
  sim_->run_for(sim_->options().link_timeout + 3 * kMillisecond);
  EXPECT_EQ(sim_->network().open_links().size(), 1u);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(id));
  sim_->heal();
  EXPECT_TRUE(recovered());
}

TEST_F(Scenario, AFrozenExpertLosesItsLinksAndComesBack) {
  start({.attention_nodes = 2, .expert_nodes = 2, .replicas = 2});
  const uint64_t id = submit(0);
  const uint64_t incarnation = sim_->expert(0)->incarnation();
  sim_->expert(0)->freeze(20 * kMillisecond);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(id));
  sim_->run_for(25 * kMillisecond);
  EXPECT_TRUE(recovered()) << sim_->describe();
  EXPECT_EQ(sim_->expert(0)->incarnation(), incarnation);  // The same life, on new links.
}

TEST_F(Scenario, ASlowKernelIsNotAFailure) {
  start({.attention_nodes = 1, .expert_nodes = 1, .slow_kernel = 1.0});  // All of them, 3 ms each.
  const uint64_t links = sim_->network().open_links().size();
  const uint64_t id = sim_->submit(0, {5}, 3);
  EXPECT_TRUE(at_rest());
  sim_->run_for(100 * kMillisecond);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(finished(id));
  EXPECT_EQ(sim_->network().open_links().size(), links);
}

TEST_F(Scenario, EqualNodesMergeTheirGathers) {
  start(
      {.attention_nodes = 2, .expert_nodes = 1, .shape = {.layers = 8, .experts = 4, .top_k = 2}});
  submit(0);
  sim_->run_for(317 * kMicrosecond);
  submit(1);
  sim_->run_for(5 * kMillisecond);
  const auto before = sim_->expert(0)->gather_stats();
  sim_->run_for(20 * kMillisecond);
  const auto after = sim_->expert(0)->gather_stats();
  EXPECT_GE(static_cast<double>(after.merged_runs - before.merged_runs),
            0.9 * static_cast<double>(after.mergeable_runs - before.mergeable_runs));
  EXPECT_GT(after.mergeable_runs, before.mergeable_runs);
  EXPECT_TRUE(at_rest());
}

}  // namespace
}  // namespace volley::sim
