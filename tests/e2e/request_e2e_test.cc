// Goal: a request that ends early, by the client, its deadline or a refusal, ends with the status
// of the contract and gives everything back on every node. Method: one cluster of real processes;
// the attention node's own counts, as the controller reports them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "e2e/client.h"
#include "e2e/volley_process.h"

namespace volley::e2e {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kInFlightMax = 3, kQueueMax = 2;
constexpr uint32_t kSequenceTokens = 8'000;
constexpr uint32_t kLong = kSequenceTokens - 100;

class RequestTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster_ = std::make_unique<Cluster>(ClusterOptions{.expert = 2,
                                                        .sequence_tokens = kSequenceTokens,
                                                        .in_flight_max = kInFlightMax,
                                                        .queue_max = kQueueMax});
    ASSERT_TRUE(cluster_->up());
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(cluster_->stop(), 0) << cluster_->supervisor().err();
    EXPECT_EQ(cluster_->leftovers(), "");
    cluster_.reset();
  }
  void TearDown() override { EXPECT_TRUE(all_free(seconds(10))); }

  /// Nothing runs, waits or holds cache blocks on the attention node.
  static bool all_free(milliseconds timeout) {
    return eventually(
        [] {
          const auto health = cluster_->health("attention-0");
          return health.has_value() && health->running() == 0 && health->waiting() == 0 &&
                 health->kv_blocks_free() == health->kv_blocks_total();
        },
        timeout);
  }
  static std::unique_ptr<Stream> start(const v1::GenerateRequest& request,
                                       milliseconds deadline = seconds(60)) {
    return std::make_unique<Stream>(cluster_->inference(), request, deadline);
  }
  static grpc::Status status_of(const v1::GenerateRequest& request) {
    const auto stream = start(request);
    EXPECT_TRUE(stream->wait_end());
    return stream->status;
  }

  static std::unique_ptr<Cluster> cluster_;
};

std::unique_ptr<Cluster> RequestTest::cluster_;

TEST_F(RequestTest, CancelFreesTheAttentionNodeWithinASecond) {
  std::vector<std::unique_ptr<Stream>> streams;
  for (uint64_t seed = 1; seed <= kInFlightMax; ++seed) {
    streams.push_back(start(seeded_request(seed, 40, kLong)));
  }
  for (const auto& stream : streams) ASSERT_TRUE(stream->wait_tokens(4));
  ASSERT_TRUE(eventually([] { return cluster_->health("attention-0")->running() == kInFlightMax; },
                         seconds(30)));
  EXPECT_LT(cluster_->health("attention-0")->kv_blocks_free(),
            cluster_->health("attention-0")->kv_blocks_total());
  for (const auto& stream : streams) stream->cancel();
  EXPECT_TRUE(all_free(seconds(1)));
  for (const auto& stream : streams) {
    ASSERT_TRUE(stream->wait_end());
    EXPECT_EQ(stream->status.error_code(), grpc::StatusCode::CANCELLED);
  }
}

TEST_F(RequestTest, DeadlineEndsAStreamAndFreesTheNode) {
  const auto begin = std::chrono::steady_clock::now();
  const auto stream = start(seeded_request(1, 5, kLong), milliseconds(500));
  ASSERT_TRUE(stream->wait_end(seconds(10)));
  EXPECT_EQ(stream->status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_FALSE(stream->tokens.empty());
  EXPECT_GE(stream->ended_at - begin, milliseconds(450));
  EXPECT_LE(stream->ended_at - begin, seconds(5));
  EXPECT_TRUE(all_free(seconds(1)));
}

TEST_F(RequestTest, QueueThatIsFullRefuses) {
  constexpr size_t kRequests = kInFlightMax + kQueueMax + 4;
  std::vector<std::unique_ptr<Stream>> streams;
  for (uint64_t seed = 1; seed <= kRequests; ++seed) {
    streams.push_back(start(seeded_request(seed, 5, kLong)));
  }
  const auto count = [&](auto predicate) {
    size_t result = 0;
    for (const auto& stream : streams) result += predicate(*stream) ? 1 : 0;
    return result;
  };
  const auto refused = [](Stream& stream) { return stream.wait_end(milliseconds(0)); };
  EXPECT_TRUE(eventually([&] { return count(refused) == 4; }, seconds(30)));
  for (const auto& stream : streams) {
    if (!refused(*stream)) continue;
    EXPECT_EQ(stream->status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(stream->status.error_message(), HasSubstr("the queue is full"));
  }
  // The others run or wait: a place that becomes free goes to one that waits.
  const auto runs = [](Stream& stream) { return stream.wait_tokens(1, milliseconds(0)); };
  EXPECT_TRUE(eventually([&] { return count(runs) == kInFlightMax; }, seconds(30)));
  for (const auto& stream : streams) {
    if (runs(*stream)) {
      stream->cancel();
      break;
    }
  }
  EXPECT_TRUE(eventually([&] { return count(runs) == kInFlightMax + 1; }, seconds(30)));
}

TEST_F(RequestTest, BadFieldsAreNamed) {
  struct Case {
    std::string field;
    std::function<void(v1::GenerateRequest&)> spoil;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<Case> cases = {
      {"prompt", [](auto& r) { r.clear_prompt(); }},
      {"prompt", [](auto& r) { r.mutable_token_ids()->clear_ids(); }},
      {"prompt",
       [](auto& r) {
         r.set_text("");
         r.set_add_special_tokens(false);
       }},
      {"prompt",
       [](auto& r) {
         for (uint32_t i = 0; i < kSequenceTokens; ++i) r.mutable_token_ids()->add_ids(3);
       }},
      {"token_ids", [](auto& r) { r.mutable_token_ids()->add_ids(199); }},
      {"token_ids", [](auto& r) { r.mutable_token_ids()->add_ids(-1); }},
      {"stop_token_ids", [](auto& r) { r.add_stop_token_ids(199); }},
      {"max_new_tokens", [](auto& r) { r.set_max_new_tokens(0); }},
      {"max_new_tokens", [](auto& r) { r.set_max_new_tokens(kSequenceTokens); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-1); }},
      {"sampling.temperature", [nan](auto& r) { r.mutable_sampling()->set_temperature(nan); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(1.5F); }},
      {"sampling.min_p", [](auto& r) { r.mutable_sampling()->set_min_p(-0.1F); }},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "case " << i);
    v1::GenerateRequest request = seeded_request(1, 3, 4);
    ASSERT_TRUE(status_of(request).ok());
    cases[i].spoil(request);
    const grpc::Status status = status_of(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(cases[i].field));
  }
}

}  // namespace
}  // namespace volley::e2e
