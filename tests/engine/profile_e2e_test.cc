// Goal: both engines account for all of their threads' time, each kind where it belongs, and their
// traces show every layer of every step. The counted bytes are those of the messages, to the byte.
// Method: a cluster in one process decodes over shared memory. Only relations are checked, never
// absolute times.

#include <gtest/gtest.h>

#include <set>

#include "engine/cluster_harness.h"

namespace volley::engine {
namespace {

void expect_whole(const ProfileSnapshot& profile, const std::set<Span>& used) {
  Nanos sum = 0;
  for (size_t i = 0; i < kSpanKinds; ++i) {
    const SpanTotals& totals = profile.spans[i];
    EXPECT_GE(totals.time, 0) << span_name(static_cast<Span>(i));
    EXPECT_EQ(totals.count > 0, used.contains(static_cast<Span>(i)))
        << span_name(static_cast<Span>(i));
    sum += totals.time;
  }
  EXPECT_EQ(sum, profile.wall);
  EXPECT_GT(profile.busy(), 0);
  EXPECT_LE(profile.busy(), profile.wall);
}

void expect_gapless(const std::vector<SpanRecord>& trace) {
  ASSERT_FALSE(trace.empty());
  for (size_t i = 1; i < trace.size(); ++i) ASSERT_EQ(trace[i].begin, trace[i - 1].end) << i;
}

TEST(ProfileEndToEnd, SumsToTheWallTimeAndShowsEveryLayer) {
  constexpr uint32_t kNewTokens = 6;
  HarnessOptions options;
  options.fabric = "shm";
  options.trace_capacity = 200'000;
  const model::Checkpoint checkpoint = random_moe();
  ClusterHarness cluster(options, checkpoint);
  std::vector<GenerationRequest> requests = random_requests(5, 4, 199, 12, kNewTokens);
  std::vector<Stream> streams(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) cluster.submit(0, requests[i], streams[i]);
  size_t generated = 0;
  for (Stream& stream : streams) {
    ASSERT_TRUE(stream.wait());
    ASSERT_TRUE(stream.status.ok()) << stream.status;
    generated += stream.tokens.size();
  }
  cluster.stop();

  const AttentionStatus attention = cluster.attention(0).status();
  expect_whole(attention.profile,
               {Span::kSchedule, Span::kCombine, Span::kAttention, Span::kPack, Span::kPost,
                Span::kHead, Span::kSample, Span::kWait, Span::kIdle});
  const uint64_t layers = checkpoint.spec.layer_count();
  EXPECT_EQ(attention.profile[Span::kAttention].count, attention.steps * layers);
  EXPECT_EQ(attention.profile[Span::kSample].rows, generated);

  const ExpertStatus expert = cluster.expert(0).status();
  expect_whole(expert.profile, {Span::kSchedule, Span::kPost, Span::kPrepare, Span::kFfn,
                                Span::kCheck, Span::kWait, Span::kIdle});
  EXPECT_EQ(expert.profile[Span::kFfn].rows, expert.rows);

  const std::vector<SpanRecord> attention_trace = cluster.attention(0).take_trace();
  const std::vector<SpanRecord> expert_trace = cluster.expert(0).take_trace();
  expect_gapless(attention_trace);
  expect_gapless(expert_trace);
  // Both clocks are the host's: the experts work inside the attention node's life.
  for (const SpanRecord& span : expert_trace) {
    if (span.kind != Span::kFfn) continue;
    EXPECT_GE(span.begin, attention_trace.front().begin);
    EXPECT_LE(span.end, attention_trace.back().end);
    EXPECT_LT(span.layer, layers);
    EXPECT_LT(span.micro_batch, options.micro_batches);
    EXPECT_GT(span.rows, 0u);
  }
}

TEST(ProfileEndToEnd, CountsEveryByteAndWhatSharedRowsSave) {
  const model::Checkpoint checkpoint = random_moe();
  const model::ModelSpec& spec = checkpoint.spec;
  const uint64_t top_k = spec.layers.front().moe.top_k;
  ASSERT_GE(top_k, 2u);  // Else no row is shared.
  const uint64_t row_bytes = spec.hidden * kernels::dtype_bytes(kernels::DType::kBf16);
  struct Case {
    const char* fabric;
    uint32_t expert_nodes;
    bool fp8;
    bool sums;
  };
  for (const auto& [fabric, expert_nodes, fp8, sums] : {Case{"local", 1, false, false},
                                                        {"local", 3, false, false},
                                                        {"tcp", 1, false, false},
                                                        {"tcp", 3, false, false},
                                                        {"tcp", 1, true, false},
                                                        {"shm", 3, true, false},
                                                        {"local", 1, false, true},
                                                        {"tcp", 3, false, true},
                                                        {"shm", 3, true, true}}) {
    SCOPED_TRACE(
        fmt::format("{} with {} expert nodes, fp8 {}, sums {}", fabric, expert_nodes, fp8, sums));
    ClusterHarness cluster(
        {.fabric = fabric,
         .expert_nodes = expert_nodes,
         .fp8_dispatch = fp8,
         .combine = sums ? protocol::Combine::kPreReduce : protocol::Combine::kExact},
        checkpoint);
    const std::vector<GenerationRequest> requests = random_requests(3, 4, 199, 20, 5);
    std::vector<Stream> streams(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) cluster.submit(0, requests[i], streams[i]);
    uint64_t tokens = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_TRUE(streams[i].wait());
      ASSERT_TRUE(streams[i].status.ok()) << streams[i].status;
      tokens += requests[i].tokens.size() + requests[i].max_new_tokens - 1;
    }
    cluster.stop();
    Traffic experts;
    uint64_t entries = 0;
    for (uint32_t i = 0; i < expert_nodes; ++i) {
      const ExpertStatus status = cluster.expert(i).status();
      entries += status.rows;
      experts.messages_sent += status.traffic.messages_sent;
      experts.messages_received += status.traffic.messages_received;
      experts.bytes_sent += status.traffic.bytes_sent;
      experts.bytes_received += status.traffic.bytes_received;
      experts.saved_pre_reduce_bytes += status.traffic.saved_pre_reduce_bytes;
      EXPECT_EQ(status.traffic.saved_sharing_bytes, 0u);
    }
    EXPECT_EQ(entries, tokens * top_k * spec.layer_count());
    const Traffic attention = cluster.attention(0).status().traffic;
    EXPECT_EQ(attention.messages_sent, experts.messages_received);
    EXPECT_EQ(attention.messages_received, attention.messages_sent);
    EXPECT_EQ(attention.bytes_sent, experts.bytes_received);
    EXPECT_EQ(attention.bytes_received, experts.bytes_sent);
    const uint64_t overhead = attention.messages_sent * sizeof(protocol::MessageHeader) +
                              entries * (sizeof(protocol::Entry) + (sums ? sizeof(float) : 0));
    EXPECT_EQ(attention.bytes_sent + attention.saved_sharing_bytes + attention.saved_fp8_bytes,
              overhead + entries * row_bytes);
    const uint64_t rows = entries - attention.saved_sharing_bytes / row_bytes;
    EXPECT_EQ(attention.saved_fp8_bytes,
              fp8 ? rows * (row_bytes - protocol::e4m3_row_bytes(spec.hidden)) : 0);
    EXPECT_EQ(attention.saved_fp8_bytes > 0, fp8);
    EXPECT_EQ(experts.bytes_sent + experts.saved_pre_reduce_bytes,
              experts.messages_sent * sizeof(protocol::MessageHeader) + entries * row_bytes);
    EXPECT_EQ(experts.saved_pre_reduce_bytes, sums ? (entries - rows) * row_bytes : 0);
    EXPECT_EQ(attention.saved_pre_reduce_bytes, 0u);
    if (expert_nodes == 1) {
      // Of the k experts of a row, all are there.
      EXPECT_EQ(attention.saved_sharing_bytes, entries / top_k * (top_k - 1) * row_bytes);
    } else {
      EXPECT_GT(attention.saved_sharing_bytes, 0u);
    }
  }
}

TEST(ProfileEndToEnd, AdaptiveMicroBatchesMeasureAndChangeNoBit) {
  const model::Checkpoint checkpoint = random_moe();
  const std::vector<GenerationRequest> requests = random_requests(9, 12, 199, 12, 100);
  std::vector<std::vector<uint64_t>> digests[2];
  for (const bool adaptive : {false, true}) {
    HarnessOptions options;
    options.fabric = "shm";
    options.micro_batches = adaptive ? 4 : 1;
    options.adaptive_micro_batches = adaptive;
    ClusterHarness cluster(options, checkpoint);
    std::vector<Stream> streams(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) cluster.submit(0, requests[i], streams[i]);
    for (Stream& stream : streams) {
      ASSERT_TRUE(stream.wait());
      ASSERT_TRUE(stream.status.ok()) << stream.status;
      digests[adaptive].push_back(stream.digests);
    }
    cluster.stop();
    const AttentionStatus status = cluster.attention(0).status();
    uint32_t sizes = 0;
    for (const MeasuredTimes& times : status.measured) {
      if (times.rows == 0) continue;
      ++sizes;
      EXPECT_GT(times.attention, 0) << times.rows;
      EXPECT_GT(times.expert, 0) << times.rows;
      EXPECT_GE(times.transfer, 0) << times.rows;
    }
    EXPECT_GT(sizes, 0u);
    EXPECT_GE(status.micro_batches.micro_batches, 1u);
    EXPECT_LE(status.micro_batches.micro_batches, options.micro_batches);
    EXPECT_EQ(status.micro_batches.why == scheduler::MicroBatchDecision::Why::kConfigured,
              !adaptive)
        << scheduler::describe(status.micro_batches);
  }
  EXPECT_EQ(digests[0], digests[1]);
}

}  // namespace
}  // namespace volley::engine
