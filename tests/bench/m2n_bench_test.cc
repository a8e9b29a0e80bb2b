// Goal: round trips are judged against the right bound, options are checked, the report says what
// was measured, peers that fail end the run. Method: made-up steps; bad options; short runs with
// threads and with processes over shared memory (no time is asserted).

#include "volley/bench/m2n_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <nlohmann/json.hpp>

namespace volley::bench {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

void silent(const std::string&) {}

/// No child of this process is left, running or unreaped.
void expect_no_children() {
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

M2nShape mxn(uint32_t senders, uint32_t receivers) {
  return {.senders = senders, .receivers = receivers};
}

TEST(M2nBound, CopiesFollowOneAnother) {
  const M2nSteps steps{.copy_dispatch = 10, .copy_answer = 1, .plain_round_trip = 99};
  // Written, read, answered, read.
  EXPECT_DOUBLE_EQ(m2n_round_trip_bound_seconds(steps, mxn(1, 1), 2), 22);
  // One sender writes four dispatches, the last of which is read and answered.
  EXPECT_DOUBLE_EQ(m2n_round_trip_bound_seconds(steps, mxn(1, 4), 8), 4 * 10 + 10 + 2);
  // One receiver reads four dispatches and answers each.
  EXPECT_DOUBLE_EQ(m2n_round_trip_bound_seconds(steps, mxn(4, 1), 8), 10 + 4 * 11 + 1);
  // All copies of sixteen links, on one core.
  EXPECT_DOUBLE_EQ(m2n_round_trip_bound_seconds(steps, mxn(4, 4), 1), 16 * 22);
}

TEST(M2nBound, SocketsShareTheCores) {
  const M2nSteps steps{.plain_round_trip = 10};
  EXPECT_DOUBLE_EQ(m2n_round_trip_bound_seconds(steps, mxn(1, 1), 2), 10);
  EXPECT_DOUBLE_EQ(m2n_round_trip_bound_seconds(steps, mxn(4, 4), 2), 80);
  EXPECT_DOUBLE_EQ(m2n_round_trip_bound_seconds(steps, mxn(2, 2), 64), 10);
}

TEST(M2nBound, StreamsWriteAndReadAtTheSameTime) {
  const M2nSteps memory{.copy_dispatch = 10};
  EXPECT_DOUBLE_EQ(m2n_stream_bound_seconds(memory, mxn(1, 1), 2, false), 10);
  EXPECT_DOUBLE_EQ(m2n_stream_bound_seconds(memory, mxn(1, 1), 2, true), 20);
  EXPECT_DOUBLE_EQ(m2n_stream_bound_seconds(memory, mxn(1, 1), 1, false), 20);
  EXPECT_DOUBLE_EQ(m2n_stream_bound_seconds(memory, mxn(4, 1), 8, false), 40);
  const M2nSteps sockets{.plain_stream = 7};
  EXPECT_DOUBLE_EQ(m2n_stream_bound_seconds(sockets, mxn(1, 1), 2, false), 7);
  EXPECT_DOUBLE_EQ(m2n_stream_bound_seconds(sockets, mxn(2, 2), 4, true), 28);
}

TEST(M2nIterations, ShrinkWithTheSizeDownToALimit) {
  M2nBenchOptions options;
  options.iterations = 500;
  EXPECT_EQ(m2n_iterations(options, {.bytes = 8 << 20}), 500u);
  options.link_bytes_max = 64 << 20;
  EXPECT_EQ(m2n_iterations(options, {.bytes = 2048}), 500u);
  EXPECT_EQ(m2n_iterations(options, {.bytes = 1 << 20}), 64u);
  EXPECT_EQ(m2n_iterations(options, {.bytes = 8 << 20}), kM2nIterationsMin);
}

TEST(M2nPreset, HasThePublishedSizes) {
  const auto paper = m2n_preset("paper", 8, 8);
  ASSERT_TRUE(paper.ok());
  ASSERT_EQ(paper->size(), 13u);
  EXPECT_EQ(paper->front().bytes, 2048u);
  EXPECT_EQ(paper->back().bytes, 8u << 20);
  EXPECT_EQ(paper->back().senders, 8u);
  const auto scale = m2n_preset("paper-mn", 1, 1);
  ASSERT_TRUE(scale.ok());
  ASSERT_EQ(scale->size(), 4u);
  EXPECT_EQ(scale->back().receivers, 32u);
  EXPECT_EQ(scale->back().bytes, 256u << 10);
  // Eight choices of 128 tokens among sixteen receivers, and among two.
  EXPECT_EQ(m2n_preset("deepep", 1, 16)->front().bytes, 64u * 14'336);
  EXPECT_EQ(m2n_preset("deepep", 1, 2)->front().bytes, 128u * 14'336);
  EXPECT_EQ(m2n_preset("deepep", 1, 2)->front().answer_bytes, 512u * 14'336);
  EXPECT_EQ(m2n_preset("stepmesh", 4, 4)->front().receivers, 1u);
  EXPECT_EQ(m2n_preset("other", 1, 1).status().code(), StatusCode::kInvalidArgument);
}

struct Refusal {
  std::function<void(M2nBenchOptions&)> change;
  const char* words;
};

TEST(M2nBench, RefusesWrongOptionsWithTheValue) {
  const Refusal refusals[] = {
      {[](auto& options) { options.fabric = std::string("pigeon"); }, "fabric is 'pigeon'"},
      {[](auto& options) {
         options.fabric = std::string("rdma");
         options.rdma_ports = {"a", "b", "c"};
       },
       "rdma_ports has 3 ports"},
      {[](auto& options) {
         options.fabric = std::string("rdma");
         options.queue_pairs = 9;
       },
       "queue_pairs is 9, allowed: 1 to 8"},
      {[](auto& options) { options.shapes[0].senders = 0; }, "senders is 0"},
      {[](auto& options) { options.shapes[0].receivers = 33; },
       "receivers is 33, allowed: 1 to 32"},
      {[](auto& options) { options.shapes = {}; }, "shapes is empty"},
      {[](auto& options) { options.shapes.push_back({.bytes = 0}); }, "bytes is 0"},
      {[](auto& options) { options.shapes[0].bytes = 3000; },
       "bytes is 3000, allowed: multiples of 2048"},
      {[](auto& options) { options.shapes[0].bytes = (16 << 20) + 2048; }, "bytes is 16779264"},
      {[](auto& options) { options.shapes[0].answer_bytes = 1; }, "answer_bytes is 1"},
      {[](auto& options) { options.iterations = 0; }, "iterations is 0"},
      {[](auto& options) { options.shapes[0].row_bytes = 12; }, "row_bytes is 12"},
      {[](auto& options) { options.window = 17; }, "window is 17, allowed: 1 to 16"},
      {[](auto& options) { options.wait = std::string("hope"); }, "wait is 'hope'"},
      {[](auto& options) { options.timeout_ms = 0; }, "timeout_ms is 0"},
      {[](auto& options) { options.cores = {100'000}; }, "core 100000"},
  };
  for (const Refusal& refusal : refusals) {
    M2nBenchOptions options;
    options.shapes = {{}};
    refusal.change(options);
    const Status status = run_m2n_bench(options, silent).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << refusal.words;
    EXPECT_THAT(message_of(status), HasSubstr(refusal.words));
  }
}

TEST(M2nBench, NamesTheRdmaPortThatIsNotThere) {
  M2nBenchOptions options;
  options.shapes = {{}};
  options.fabric = "rdma";
  options.rdma_ports = {"no_such_device"};
  const Status status = run_m2n_bench(options, silent).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(message_of(status), HasSubstr("no_such_device"));
}

M2nBenchOptions small_run(const std::string& fabric, uint32_t senders, uint32_t receivers) {
  M2nBenchOptions options;
  options.fabric = fabric;
  for (const uint64_t bytes : {2048, 8192}) {
    options.shapes.push_back(
        {.senders = senders, .receivers = receivers, .bytes = bytes, .answer_bytes = 4096});
  }
  options.iterations = 20;
  options.warmup = 2;
  return options;
}

void expect_measured(const M2nBenchOptions& options) {
  const auto report = run_m2n_bench(options, silent);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->results.size(), options.shapes.size());
  for (size_t i = 0; i < options.shapes.size(); ++i) {
    const M2nResult& result = report->results[i];
    EXPECT_EQ(result.shape.bytes, options.shapes[i].bytes);
    EXPECT_GT(result.best_seconds, 0);
    EXPECT_GE(result.median_seconds, result.best_seconds);
    EXPECT_GE(result.p99_seconds, result.median_seconds);
    EXPECT_GE(result.p999_seconds, result.p99_seconds);
    EXPECT_GT(result.dispatch_gbps, 0);
    EXPECT_EQ(result.answer_gbps > 0, options.pattern != M2nPattern::kOneWay);
    EXPECT_GT(result.bound_seconds, 0);
  }
}

TEST(M2nBench, MeasuresThreads) {
  expect_measured(small_run("local", 1, 1));
  expect_measured(small_run("local", 3, 2));
}

TEST(M2nBench, MeasuresProcesses) {
  expect_measured(small_run("shm", 1, 1));
  expect_measured(small_run("shm", 2, 3));
  M2nBenchOptions polling = small_run("shm", 2, 2);
  polling.wait = std::string("poll");
  expect_measured(polling);
  polling.busy = true;
  expect_measured(polling);
  expect_no_children();
}

TEST(M2nBench, MeasuresStreams) {
  for (const M2nPattern pattern : {M2nPattern::kOneWay, M2nPattern::kBoth}) {
    for (const char* fabric : {"local", "shm"}) {
      M2nBenchOptions options = small_run(fabric, 2, 2);
      options.pattern = pattern;
      options.window = 3;
      expect_measured(options);
    }
  }
}

TEST(M2nBench, APeerThatRunsOutOfTimeEndsTheRun) {
  for (const char* fabric : {"local", "shm"}) {
    M2nBenchOptions options = small_run(fabric, 2, 1);
    options.iterations = 10'000'000;
    options.timeout_ms = 50;
    const Status status = run_m2n_bench(options, silent).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(message_of(status), HasSubstr("2048 bytes on"));
    EXPECT_THAT(message_of(status), HasSubstr("not done within 50 ms"));
  }
  expect_no_children();
}

M2nReport example() {
  M2nReport report{.machine = {.cpu_name = "X", .cores = {0, 1}},
                   .date = "2026-01-02T03:04:05Z",
                   .system = "shm",
                   .cores = {1, 0},
                   .core_count = 2,
                   .results = {}};
  report.results.push_back({.shape = {.senders = 2, .receivers = 3, .bytes = 4096},
                            .iterations = 7,
                            .best_seconds = 4e-6,
                            .median_seconds = 5e-6,
                            .p99_seconds = 6e-6,
                            .p999_seconds = 7e-6,
                            .dispatch_gbps = 8,
                            .answer_gbps = 4,
                            .bound_seconds = 2e-6,
                            .best_share = 0.5,
                            .median_share = 0.4});
  return report;
}

TEST(M2nReport, TheTableHoldsTimesAndShares) {
  const std::string table = format_m2n_report(example());
  EXPECT_THAT(table, HasSubstr("shm, round-trip\npinned to 1,0; waiting peers sleep; 2 cores, "
                               "shared by the peers\n"));
  EXPECT_THAT(table, ContainsRegex("2 +3 +4096 +2048 +7 +4.00 +5.00 +6.00 +7.00 +8.00 +4.00 +2.00 "
                                   "+50% +40% +-\n"));
}

TEST(M2nReport, TheJsonHoldsTheSame) {
  const auto json = nlohmann::json::parse(m2n_report_json(example()));
  EXPECT_EQ(json["system"], "shm");
  EXPECT_EQ(json["pattern"], "round-trip");
  EXPECT_EQ(json["pinned_to"], (std::vector<int>{1, 0}));
  EXPECT_EQ(json["polling"], false);
  EXPECT_EQ(json["results"][0]["senders"], 2);
  EXPECT_EQ(json["results"][0]["bytes"], 4096);
  EXPECT_DOUBLE_EQ(json["results"][0]["share_median"], 0.4);
}

}  // namespace
}  // namespace volley::bench
