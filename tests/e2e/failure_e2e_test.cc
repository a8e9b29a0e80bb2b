// Goal: a process that is killed ends the streams that needed it within a second, and leaves
// nothing behind; a node that comes back serves again; SIGTERM lets what runs finish. Method:
// clusters of real processes under long streams, kill -9 and SIGTERM by process id.

#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <vector>

#include "e2e/client.h"
#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using Streams = std::vector<std::unique_ptr<Stream>>;

// More than can be generated before the tests below end them.
constexpr uint32_t kLongTokens = 16'000;

ClusterOptions long_streams() {
  return {.attention = 2, .expert = 2, .micro_batches = 2, .sequence_tokens = kLongTokens + 100};
}

Streams start_streams(Cluster& cluster, size_t count, uint32_t tokens) {
  Streams streams;
  for (size_t i = 0; i < count; ++i) {
    streams.push_back(
        std::make_unique<Stream>(cluster.inference(), seeded_request(i + 1, 5, tokens)));
  }
  for (auto& stream : streams) {
    EXPECT_TRUE(stream->wait_tokens(4)) << stream->status.error_message();
  }
  return streams;
}

class Kill : public ::testing::TestWithParam<std::string> {};

TEST_P(Kill, EndsItsStreamsWithinASecondAndLeavesNothing) {
  const std::string victim = GetParam();
  Cluster cluster(long_streams());
  ASSERT_TRUE(cluster.up());
  Stream before(cluster.inference(), seeded_request(99, 9, 8));
  ASSERT_TRUE(before.wait_end());
  ASSERT_TRUE(before.status.ok()) << before.status.error_message();

  const Streams streams = start_streams(cluster, 10, kLongTokens);
  const auto processes = cluster.processes();
  ASSERT_EQ(processes.size(), 6u);
  const auto killed_at = std::chrono::steady_clock::now();
  ASSERT_EQ(::kill(processes.at(victim), SIGKILL), 0);
  size_t ended = 0;
  for (const auto& stream : streams) {
    // The other attention node's streams need nothing from the one that died.
    if (victim.starts_with("attention") && stream->attention_node() != victim) continue;
    ++ended;
    ASSERT_TRUE(stream->wait_end(seconds(10)));
    EXPECT_LE(stream->ended_at - killed_at, seconds(1));
    EXPECT_EQ(stream->status.error_code(), grpc::StatusCode::UNAVAILABLE)
        << stream->status.error_message();
  }
  EXPECT_GE(ended, 4u);
  if (victim.starts_with("attention")) {
    for (const auto& stream : streams) {
      if (stream->attention_node() == victim) continue;
      EXPECT_TRUE(stream->wait_tokens(500)) << stream->status.error_message();
      stream->cancel();
    }
  }

  if (victim == "up") {
    EXPECT_EQ(cluster.supervisor().wait_exit(seconds(30)), -SIGKILL);
  } else {
    if (victim.starts_with("expert")) {
      // Else the readiness of before its death could be taken for that of after its return.
      EXPECT_TRUE(eventually(
          [&] {
            const auto first = cluster.health("attention-0"),
                       second = cluster.health("attention-1");
            return first && second && !first->ready() && !second->ready();
          },
          seconds(30)));
    }
    Process& again = cluster.start_node(victim);
    ASSERT_TRUE(cluster.wait_ready()) << again.err();
    Stream after(cluster.inference(), seeded_request(99, 9, 8));
    ASSERT_TRUE(after.wait_end());
    EXPECT_TRUE(after.status.ok()) << after.status.error_message();
    EXPECT_EQ(after.tokens, before.tokens);
    EXPECT_EQ(after.digests, before.digests);
    again.signal(SIGTERM);  // First: expert nodes drain as long as an attention node is linked.
    EXPECT_EQ(cluster.stop(), 0) << cluster.supervisor().err();
    EXPECT_EQ(again.wait_exit(seconds(20)), 0) << again.err();
  }
  EXPECT_EQ(cluster.leftovers(), "");
}

INSTANTIATE_TEST_SUITE_P(EachKind, Kill,
                         ::testing::Values("frontend", "attention-0", "expert-0", "up"),
                         [](const auto& kind) {
                           return kind.param.substr(0, kind.param.find('-'));
                         });

TEST(Stop, LetsRunningStreamsFinish) {
  for (const std::string fabric : {"shm", "local"}) {
    SCOPED_TRACE(fabric);
    ClusterOptions options = long_streams();
    options.fabric = fabric;
    // Signals must not reach a thread that was started too early to have them blocked.
    options.threads = 2;
    options.stop_timeout_ms = 20'000;
    Cluster cluster(options);
    ASSERT_TRUE(cluster.up());
    const Streams streams = start_streams(cluster, 6, 600);
    cluster.supervisor().signal(SIGTERM);
    for (const auto& stream : streams) {
      ASSERT_TRUE(stream->wait_end());
      EXPECT_TRUE(stream->status.ok()) << stream->status.error_message();
      EXPECT_EQ(stream->tokens.size(), 600u);
    }
    EXPECT_EQ(cluster.supervisor().wait_exit(seconds(10)), 0) << cluster.supervisor().err();
    EXPECT_EQ(cluster.leftovers(), "");
  }
}

TEST(Stop, TimeoutEndsStreamsWithAStatus) {
  ClusterOptions options = long_streams();
  options.stop_timeout_ms = 500;
  Cluster cluster(options);
  ASSERT_TRUE(cluster.up());
  const Streams streams = start_streams(cluster, 4, kLongTokens);
  cluster.supervisor().signal(SIGTERM);
  for (const auto& stream : streams) {
    ASSERT_TRUE(stream->wait_end(seconds(30)));
    EXPECT_EQ(stream->status.error_code(), grpc::StatusCode::UNAVAILABLE)
        << stream->status.error_message();
  }
  EXPECT_EQ(cluster.supervisor().wait_exit(seconds(30)), 0) << cluster.supervisor().err();
  EXPECT_EQ(cluster.leftovers(), "");
}

TEST(Stop, SecondSignalCutsItShort) {
  for (const std::string fabric : {"shm", "local"}) {
    SCOPED_TRACE(fabric);
    ClusterOptions options = long_streams();
    options.fabric = fabric;
    options.stop_timeout_ms = 60'000;
    Cluster cluster(options);
    ASSERT_TRUE(cluster.up());
    const Streams streams = start_streams(cluster, 4, kLongTokens);
    cluster.supervisor().signal(SIGTERM);
    // It has taken the first signal, and goes on: two signals at once count as one.
    EXPECT_TRUE(eventually(
        [&] { return cluster.supervisor().err().find("stopping on signal") != std::string::npos; },
        seconds(30)));
    EXPECT_FALSE(cluster.supervisor().wait_exit(milliseconds(300)).has_value());
    cluster.supervisor().signal(SIGTERM);
    for (const auto& stream : streams) {
      ASSERT_TRUE(stream->wait_end(seconds(30)));
      EXPECT_EQ(stream->status.error_code(), grpc::StatusCode::UNAVAILABLE)
          << stream->status.error_message();
    }
    EXPECT_EQ(cluster.supervisor().wait_exit(seconds(30)), 0) << cluster.supervisor().err();
    EXPECT_EQ(cluster.leftovers(), "");
  }
}

}  // namespace
}  // namespace volley::e2e
