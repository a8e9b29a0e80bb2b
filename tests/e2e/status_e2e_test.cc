// Goal: operators see where each node's time goes and why it runs so many micro-batches.
// Method: a cluster of real processes generates; its status, as a message and as the tables of
// `volley status`, is held against itself. Only relations are checked, never absolute times.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "e2e/client.h"
#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Not;

void generate(Cluster& cluster, uint32_t count, uint32_t new_tokens) {
  std::vector<std::unique_ptr<Stream>> streams;
  for (uint32_t i = 0; i < count; ++i) {
    streams.push_back(
        std::make_unique<Stream>(cluster.inference(), seeded_request(i + 1, 8, new_tokens)));
  }
  for (auto& stream : streams) {
    ASSERT_TRUE(stream->wait_end());
    ASSERT_TRUE(stream->status.ok()) << stream->status.error_message();
  }
}

/// The profile of a node once it has `steps` at least; reports lag behind.
v1::NodeProfile profile_of(Cluster& cluster, const std::string& node, uint64_t steps) {
  v1::NodeProfile profile;
  EXPECT_TRUE(eventually(
      [&] {
        const auto status = cluster.status();
        if (!status.has_value() || !status->profiles().contains(node)) return false;
        profile = status->profiles().at(node);
        return profile.steps() >= steps;
      },
      seconds(30)))
      << node;
  return profile;
}

void expect_sound(const v1::NodeProfile& profile, const std::vector<std::string>& kinds) {
  std::set<std::string> seen;
  uint64_t sum = 0;
  for (const v1::NodeProfile::Span& span : profile.spans()) {
    EXPECT_TRUE(seen.insert(span.kind()).second) << span.kind();
    EXPECT_GT(span.count(), 0u) << span.kind();
    EXPECT_LE(span.time_ns(), profile.wall_ns()) << span.kind();
    sum += span.time_ns();
  }
  EXPECT_THAT(seen, IsSupersetOf(kinds));
  EXPECT_EQ(sum, profile.wall_ns());
}

TEST(Status, ProfilesSumToTheWallTime) {
  Cluster cluster({.attention = 1, .expert = 2, .micro_batches = 2});
  ASSERT_TRUE(cluster.up());
  generate(cluster, 4, 12);
  const v1::NodeProfile attention = profile_of(cluster, "attention-0", 12);
  expect_sound(attention,
               {"schedule", "combine", "attention", "pack", "post", "head", "sample", "wait"});
  EXPECT_EQ(attention.micro_batches_reason(), "m=2: as configured");
  for (const std::string node : {"expert-0", "expert-1"}) {
    expect_sound(profile_of(cluster, node, 12), {"schedule", "prepare", "ffn", "check", "post"});
  }

  // The sequences have ended, so no message is on its way.
  EXPECT_GT(attention.traffic().messages_sent(), 0u);
  EXPECT_TRUE(eventually(
      [&] {
        uint64_t at_experts = 0;
        for (const std::string node : {"expert-0", "expert-1"}) {
          at_experts += profile_of(cluster, node, 12).traffic().bytes_received();
        }
        return profile_of(cluster, "attention-0", 12).traffic().bytes_sent() == at_experts;
      },
      seconds(30)));

  const CommandResult plain = run_volley({"status", "--controller", cluster.controller()});
  EXPECT_EQ(plain.exit_code, 0) << plain.err;
  EXPECT_THAT(plain.out, HasSubstr("attention-0: m=2: as configured"));
  EXPECT_THAT(plain.out, Not(HasSubstr("PER STEP")));
  const CommandResult table =
      run_volley({"status", "--profile", "--controller", cluster.controller()});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  for (const std::string text : {"PER STEP", "PER LAYER", "PER GATHER", "SHARE", "sample", "ffn",
                                 "DATA PLANE", "BYTES PER STEP", "saved: rows once a node"})
    EXPECT_THAT(table.out, HasSubstr(text));
  // Nothing happens in the interval, so the difference has no steps.
  const CommandResult idle = run_volley(
      {"status", "--profile", "--interval-ms", "300", "--controller", cluster.controller()});
  EXPECT_EQ(idle.exit_code, 0) << idle.err;
  EXPECT_THAT(idle.out, HasSubstr("attention-0: 0 steps in "));
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
}

TEST(Status, SumsOnTheExpertNodesShowWhatTheySaveAndWhatTheyGiveUp) {
  Cluster cluster({.expert = 2, .transport = "  combine: pre_reduce\n"});
  ASSERT_TRUE(cluster.up());
  generate(cluster, 2, 8);
  const auto saved = [&](const std::string& node) {
    return profile_of(cluster, node, 8).traffic().saved_pre_reduce_bytes();
  };
  EXPECT_GT(saved("expert-0") + saved("expert-1"), 0u);
  EXPECT_EQ(saved("attention-0"), 0u);
  const CommandResult table =
      run_volley({"status", "--profile", "--controller", cluster.controller()});
  EXPECT_THAT(table.out, HasSubstr("saved: rows summed"));
  const auto status = cluster.status();
  ASSERT_TRUE(status.has_value());
  for (const v1::ClusterMember& member : status->view().members()) {
    if (member.registration().role() == v1::ROLE_FRONTEND) continue;
    EXPECT_THAT(member.registration().numerics_fingerprint(), HasSubstr("/pre-reduce"));
    EXPECT_EQ(member.registration().geometry().weight_bytes(), 4u);
  }
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
  EXPECT_THAT(cluster.supervisor().err(), HasSubstr("gives up promise P1"));
}

TEST(Status, Fp8DispatchesShowWhatTheySave) {
  Cluster cluster({.expert = 2, .transport = "  dispatch_dtype: fp8_e4m3\n"});
  ASSERT_TRUE(cluster.up());
  generate(cluster, 2, 8);
  EXPECT_GT(profile_of(cluster, "attention-0", 8).traffic().saved_fp8_bytes(), 0u);
  EXPECT_EQ(profile_of(cluster, "expert-0", 8).traffic().saved_fp8_bytes(), 0u);
  const CommandResult table =
      run_volley({"status", "--profile", "--controller", cluster.controller()});
  EXPECT_THAT(table.out, HasSubstr("saved: fp8 rows"));
  const auto status = cluster.status();
  ASSERT_TRUE(status.has_value());
  for (const v1::ClusterMember& member : status->view().members()) {
    if (member.registration().role() == v1::ROLE_FRONTEND) continue;
    EXPECT_THAT(member.registration().numerics_fingerprint(), HasSubstr("/dispatch-e4m3"));
  }
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
}

TEST(Status, AnAdaptiveNodeSaysWhyItRunsSoManyMicroBatches) {
  Cluster cluster({.adaptive_micro_batches = true});
  ASSERT_TRUE(cluster.up());
  // It decides when it has measured enough, which takes as many steps as the machine makes of it.
  v1::NodeProfile profile;
  const auto decided = AnyOf(HasSubstr("predicted"), HasSubstr("trial"));
  for (int round = 0; round < 20 && !testing::Matches(decided)(profile.micro_batches_reason());
       ++round) {
    generate(cluster, 8, 100);
    profile = profile_of(cluster, "attention-0", 100);
  }
  EXPECT_THAT(profile.micro_batches_reason(), decided);
  ASSERT_GT(profile.measured_size(), 0);
  double rows = 0;
  for (const v1::NodeProfile::Measured& times : profile.measured()) {
    EXPECT_GT(times.rows(), rows);
    rows = times.rows();
    EXPECT_GT(times.attention_ns(), 0u);
    EXPECT_GT(times.expert_ns(), 0u);
  }
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
}

TEST(Status, OneProcessRunsOneMicroBatch) {
  Cluster cluster({.fabric = "local", .adaptive_micro_batches = true});
  ASSERT_TRUE(cluster.up());
  generate(cluster, 4, 30);
  EXPECT_EQ(profile_of(cluster, "attention-0", 30).micro_batches_reason(),
            "m=1: attention and experts share their cores");
  EXPECT_EQ(cluster.health("attention-0")->micro_batches(), 1u);
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
}

}  // namespace
}  // namespace volley::e2e
