// Goal: tokens and logits do not depend on how a cluster is cut into processes, nor on the order in
// which these start. Method: random weights, temperature 1 and fixed seeds; the same requests, at
// the same time, against clusters of real processes; all token ids and logits digests must be
// equal.

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "e2e/client.h"
#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using Outputs = std::vector<std::pair<std::vector<int32_t>, std::vector<uint64_t>>>;

Outputs generate(Cluster& cluster) {
  constexpr uint32_t kNewTokens = 16;
  std::vector<std::unique_ptr<Stream>> streams;
  for (const uint32_t prompt_tokens : {1u, 2u, 7u, 33u, 64u, 100u}) {
    streams.push_back(std::make_unique<Stream>(
        cluster.inference(), seeded_request(streams.size() + 1, prompt_tokens, kNewTokens)));
  }
  Outputs outputs;
  for (auto& stream : streams) {
    EXPECT_TRUE(stream->wait_end());
    EXPECT_TRUE(stream->status.ok()) << stream->status.error_message();
    EXPECT_EQ(stream->tokens.size(), kNewTokens);
    EXPECT_EQ(stream->digests.size(), kNewTokens);
    outputs.emplace_back(stream->tokens, stream->digests);
  }
  return outputs;
}

Outputs generate_and_stop(const ClusterOptions& options) {
  Cluster cluster(options);
  if (!cluster.up()) {
    ADD_FAILURE() << "no cluster";
    return {};
  }
  Outputs outputs = generate(cluster);
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
  EXPECT_EQ(cluster.leftovers(), "");
  return outputs;
}

// Every pair of values of (attention, expert), (attention, m), (expert, m), and each of them with
// both fabrics, occurs: expert and m run through all 16 pairs, attention is their Latin square.
TEST(Topology, OutputsAreEqualOnEveryOne) {
  const Outputs expected =
      generate_and_stop({.fabric = "local", .attention = 1, .expert = 1, .micro_batches = 1});
  ASSERT_FALSE(expected.empty());
  ASSERT_NE(expected[0].second, expected[1].second);
  const uint32_t attention_counts[] = {1, 2, 3, 2}, expert_counts[] = {1, 2, 3, 5};
  for (uint32_t e = 0; e < 4; ++e) {
    for (uint32_t m = 0; m < 4; ++m) {
      const ClusterOptions options{.fabric = (e / 2 + m) % 2 == 0 ? "shm" : "tcp",
                                   .attention = attention_counts[(e + m) % 4],
                                   .expert = expert_counts[e],
                                   .micro_batches = m + 1};
      SCOPED_TRACE(::testing::Message()
                   << options.attention << " attention, " << options.expert << " expert, m "
                   << options.micro_batches << ", " << options.fabric);
      EXPECT_EQ(generate_and_stop(options), expected);
    }
  }
}

TEST(Topology, ColocatedNodesOfBothKinds) {
  const Outputs expected = generate_and_stop({.fabric = "local"});
  EXPECT_EQ(generate_and_stop({.fabric = "local", .attention = 2, .expert = 3, .micro_batches = 2}),
            expected);
}

// Each process is past its own start, and looks for the controller in vain, before the next begins.
TEST(Topology, NodesStartInAnyOrder) {
  const std::vector<std::string> orders[] = {
      {"expert-0", "expert-1", "attention-0", "frontend"},
      {"frontend", "attention-0", "expert-1", "expert-0"},
      {"attention-0", "expert-1", "frontend", "expert-0"},
  };
  Outputs expected;
  for (const auto& order : orders) {
    SCOPED_TRACE(::testing::PrintToString(order));
    Cluster cluster({.fabric = "tcp", .attention = 1, .expert = 2});
    std::vector<Process*> nodes;
    for (const std::string& name : order) {
      nodes.push_back(&cluster.start_node(name));
      const auto started = [&] {
        const std::string log = nodes.back()->err();
        return log.find("joined") != std::string::npos || log.find("API at") != std::string::npos;
      };
      ASSERT_TRUE(eventually(started, seconds(20))) << nodes.back()->err();
    }
    ASSERT_TRUE(cluster.wait_ready());
    const Outputs outputs = generate(cluster);
    if (expected.empty()) expected = outputs;
    EXPECT_EQ(outputs, expected);
    for (Process* node : nodes) node->signal(SIGTERM);
    for (Process* node : nodes) EXPECT_EQ(node->wait_exit(seconds(15)), 0) << node->err();
    EXPECT_EQ(cluster.leftovers(), "");
  }
}

}  // namespace
}  // namespace volley::e2e
