// Goal: what an attention engine does when an expert node is lost in the middle of its sequences:
// with another holder of every expert the outputs are the same bits as without the loss; without
// one every sequence ends with a status that names the expert, and nothing hangs. Method: a cluster
// in one process; one expert engine is ended after some tokens.

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "engine/cluster_harness.h"
#include "volley/base/clock.h"

namespace volley::engine {
namespace {

constexpr uint32_t kNewTokens = 60;
constexpr uint32_t kStreams = 6;

std::vector<GenerationRequest> requests() {
  return random_requests(21, kStreams, 199, 20, kNewTokens);
}

/// Runs all requests and calls `at_half` once, when some stream has half of its tokens.
void run(ClusterHarness& cluster, std::vector<Stream>& streams,
         const std::function<void()>& at_half) {
  std::atomic<bool> half{false};
  const std::vector<GenerationRequest> all = requests();
  for (uint32_t i = 0; i < kStreams; ++i) {
    streams[i].on_token = [&](size_t count) {
      if (count >= kNewTokens / 2) half = true;
    };
    cluster.submit(0, all[i], streams[i]);
  }
  const Nanos deadline = monotonic_now() + 10 * kSecond;
  while (!half && monotonic_now() < deadline) std::this_thread::yield();
  at_half();
  for (Stream& stream : streams) ASSERT_TRUE(stream.wait());
}

class ExpertLoss : public testing::TestWithParam<std::string> {};

void lose_two_of_three_replicas(HarnessOptions options) {
  options.expert_nodes = 3;
  options.micro_batches = 3;
  options.replicated = true;
  std::vector<Stream> expected(kStreams), actual(kStreams);
  {
    ClusterHarness undisturbed(options, random_moe());
    run(undisturbed, expected, [] {});
  }
  ClusterHarness cluster(options, random_moe());
  run(cluster, actual, [&] {
    cluster.kill_expert(0);
    cluster.kill_expert(2);
  });
  for (uint32_t i = 0; i < kStreams; ++i) {
    ASSERT_TRUE(actual[i].status.ok()) << actual[i].status;
    EXPECT_EQ(actual[i].tokens, expected[i].tokens) << "stream " << i;
    EXPECT_EQ(actual[i].digests, expected[i].digests) << "stream " << i;
  }
}

TEST_P(ExpertLoss, WithReplicasTheOutputsAreTheSameBits) {
  lose_two_of_three_replicas({.fabric = GetParam()});
}

TEST_P(ExpertLoss, WithReplicasAndFp8DispatchesTheOutputsAreTheSameBits) {
  lose_two_of_three_replicas({.fabric = GetParam(), .fp8_dispatch = true});
}

TEST_P(ExpertLoss, WithoutAnotherHolderEverySequenceEndsWithAStatus) {
  HarnessOptions options{.expert_nodes = 2, .micro_batches = 2};
  options.fabric = GetParam();
  ClusterHarness cluster(options, random_moe());
  std::vector<Stream> streams(kStreams);
  Nanos killed = 0;
  run(cluster, streams, [&] {
    cluster.kill_expert(1);
    killed = monotonic_now();
  });
  EXPECT_LT(monotonic_now() - killed, kSecond);
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.ends, 1u);
    if (stream.status.ok()) continue;  // It had its last token before the loss was seen.
    EXPECT_EQ(stream.status.code(), StatusCode::kUnavailable);
    EXPECT_NE(message_of(stream.status).find("expert"), std::string::npos) << stream.status;
  }
  // New sequences are refused at once, with the reason.
  Stream refused;
  cluster.submit(0, requests()[0], refused);
  ASSERT_TRUE(refused.wait());
  EXPECT_EQ(refused.status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(cluster.attention(0).status().running, 0u);
}

INSTANTIATE_TEST_SUITE_P(Fabrics, ExpertLoss, testing::Values("local", "shm", "tcp"));

}  // namespace
}  // namespace volley::engine
