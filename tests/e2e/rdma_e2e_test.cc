// Goal: a cluster over `rdma` gives the tokens and logits digests of a cluster over `tcp`, and goes
// on giving them when an expert node is killed while dispatches to it are outstanding. Method: real
// processes over real verbs. VOLLEY_TEST_FABRIC names the fabric; VOLLEY_TEST_OUTPUTS a file: `tcp`
// writes its outputs there, `rdma` must reproduce them. On `rdma` attention and expert nodes share
// the devices that VOLLEY_TEST_RDMA_DEVICES names.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "e2e/client.h"
#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

constexpr uint32_t kNewTokens = 24;
// An emulated machine takes its time.
constexpr std::chrono::milliseconds kPatience = seconds(120);

std::string from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}
bool over_rdma() {
  return from_environment("VOLLEY_TEST_FABRIC") == "rdma";
}

ClusterOptions options() {
  ClusterOptions options;
  options.fabric = over_rdma() ? "rdma" : "tcp";
  options.attention = 2;
  options.expert = 3;
  options.micro_batches = 2;
  options.replicated_experts = true;
  options.cpu_isa = "avx2";  // What an emulated machine has.
  options.report_interval_ms = 2000;
  options.start_timeout = kPatience;
  options.transport = "  link_timeout_ms: 20000\n";
  if (over_rdma()) {
    const std::string devices = from_environment("VOLLEY_TEST_RDMA_DEVICES");
    options.transport += fmt::format(
        "  rdma:\n    ports: [{{device: {}}}]\n    queue_pairs: 2\n    ack_timeout_us: 500000\n",
        devices.substr(0, devices.find(',')));
  }
  return options;
}

using Streams = std::vector<std::unique_ptr<Stream>>;

Streams start(Cluster& cluster) {
  Streams streams;
  for (const uint32_t prompt_tokens : {1u, 2u, 7u, 33u, 64u, 100u}) {
    streams.push_back(std::make_unique<Stream>(
        cluster.inference(), seeded_request(streams.size() + 1, prompt_tokens, kNewTokens),
        kPatience));
  }
  return streams;
}

/// One line a stream: tokens and digests.
std::string finish(const Streams& streams) {
  std::string text;
  for (const auto& stream : streams) {
    EXPECT_TRUE(stream->wait_end(kPatience));
    EXPECT_TRUE(stream->status.ok()) << stream->status.error_message();
    EXPECT_EQ(stream->tokens.size(), kNewTokens);
    for (size_t i = 0; i < stream->tokens.size(); ++i) {
      text += fmt::format("{}:{:016x} ", stream->tokens[i], stream->digests[i]);
    }
    text += "\n";
  }
  return text;
}

TEST(Rdma, AClusterGivesTheDigestsOfTcp) {
  const std::string file = from_environment("VOLLEY_TEST_OUTPUTS");
  ASSERT_NE(file, "") << "VOLLEY_TEST_OUTPUTS is not set";
  Cluster cluster(options());
  ASSERT_TRUE(cluster.up());
  const std::string outputs = finish(start(cluster));
  EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
  EXPECT_EQ(cluster.leftovers(), "");
  if (over_rdma()) {
    EXPECT_EQ(outputs, read_file(file));
  } else {
    write_file(file, outputs);
  }
}

TEST(Rdma, AnExpertNodeKilledDuringADispatchChangesNoBit) {
  if (!over_rdma()) GTEST_SKIP() << "failure_test covers the other fabrics";
  Cluster cluster(options());
  ASSERT_TRUE(cluster.up());
  const Streams streams = start(cluster);
  for (const auto& stream : streams) ASSERT_TRUE(stream->wait_tokens(2, kPatience));
  const pid_t victim = cluster.processes().at("expert-1");
  // While it stands still, every micro-batch comes to wait for it: the dispatches are outstanding.
  ASSERT_EQ(::kill(victim, SIGSTOP), 0);
  std::this_thread::sleep_for(milliseconds(1500));
  for (const auto& stream : streams) ASSERT_FALSE(stream->wait_end(milliseconds(0)));
  ASSERT_EQ(::kill(victim, SIGKILL), 0);
  EXPECT_EQ(finish(streams), read_file(from_environment("VOLLEY_TEST_OUTPUTS")));
  cluster.supervisor().signal(SIGTERM);
  EXPECT_TRUE(cluster.supervisor().wait_exit(kPatience).has_value());
  EXPECT_EQ(cluster.leftovers(), "");
}

}  // namespace
}  // namespace volley::e2e
