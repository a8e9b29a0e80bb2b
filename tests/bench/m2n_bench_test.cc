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

TEST(M2nBound, CopiesFollowOneAnother) {
  const M2nSteps steps{.copy_dispatch = 10, .copy_answer = 1, .plain_round_trip = 99};
  // Written, read, answered, read.
  EXPECT_DOUBLE_EQ(m2n_bound_seconds(steps, 1, 1, 2), 22);
  // One sender writes four dispatches, the last of which is read and answered.
  EXPECT_DOUBLE_EQ(m2n_bound_seconds(steps, 1, 4, 8), 4 * 10 + 10 + 2);
  // One receiver reads four dispatches and answers each.
  EXPECT_DOUBLE_EQ(m2n_bound_seconds(steps, 4, 1, 8), 10 + 4 * 11 + 1);
  // All copies of sixteen links, on one core.
  EXPECT_DOUBLE_EQ(m2n_bound_seconds(steps, 4, 4, 1), 16 * 22);
}

TEST(M2nBound, SocketsShareTheCores) {
  const M2nSteps steps{.copy_dispatch = 0, .copy_answer = 0, .plain_round_trip = 10};
  EXPECT_DOUBLE_EQ(m2n_bound_seconds(steps, 1, 1, 2), 10);
  EXPECT_DOUBLE_EQ(m2n_bound_seconds(steps, 4, 4, 2), 80);
  EXPECT_DOUBLE_EQ(m2n_bound_seconds(steps, 2, 2, 64), 10);
}

struct Refusal {
  std::function<void(M2nBenchOptions&)> change;
  const char* words;
};

TEST(M2nBench, RefusesWrongOptionsWithTheValue) {
  const Refusal refusals[] = {
      {[](auto& options) { options.fabric = std::string("rdma"); }, "fabric is 'rdma'"},
      {[](auto& options) { options.senders = 0; }, "senders is 0"},
      {[](auto& options) { options.receivers = 9; }, "receivers is 9, allowed: 1 to 8"},
      {[](auto& options) { options.bytes = {}; }, "bytes is empty"},
      {[](auto& options) {
         options.bytes = {2048, 0};
       },
       "bytes is 0"},
      {[](auto& options) { options.bytes = {3000}; }, "bytes is 3000, allowed: multiples of 2048"},
      {[](auto& options) { options.bytes = {(8 << 20) + 2048}; }, "bytes is 8390656"},
      {[](auto& options) { options.answer_bytes = 1; }, "answer_bytes is 1"},
      {[](auto& options) { options.iterations = 0; }, "iterations is 0"},
      {[](auto& options) { options.wait = std::string("hope"); }, "wait is 'hope'"},
      {[](auto& options) { options.timeout_ms = 0; }, "timeout_ms is 0"},
      {[](auto& options) { options.cores = {100'000}; }, "core 100000"},
  };
  for (const Refusal& refusal : refusals) {
    M2nBenchOptions options;
    refusal.change(options);
    const Status status = run_m2n_bench(options, silent).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << refusal.words;
    EXPECT_THAT(message_of(status), HasSubstr(refusal.words));
  }
}

M2nBenchOptions small_run(const std::string& fabric, uint32_t senders, uint32_t receivers) {
  M2nBenchOptions options;
  options.fabric = fabric;
  options.senders = senders;
  options.receivers = receivers;
  options.bytes = {2048, 8192};
  options.answer_bytes = 4096;
  options.iterations = 20;
  options.warmup = 2;
  return options;
}

void expect_measured(const M2nBenchOptions& options) {
  const auto report = run_m2n_bench(options, silent);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->results.size(), options.bytes.size());
  for (size_t i = 0; i < options.bytes.size(); ++i) {
    const M2nResult& result = report->results[i];
    EXPECT_EQ(result.bytes, options.bytes[i]);
    EXPECT_GT(result.best_seconds, 0);
    EXPECT_GE(result.median_seconds, result.best_seconds);
    EXPECT_GE(result.p99_seconds, result.median_seconds);
    EXPECT_GE(result.p999_seconds, result.p99_seconds);
    EXPECT_GT(result.dispatch_gbps, 0);
    EXPECT_GT(result.answer_gbps, 0);
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
  expect_no_children();
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
                   .fabric = "shm",
                   .senders = 2,
                   .receivers = 3,
                   .iterations = 7,
                   .cores = {1, 0},
                   .polling = false,
                   .core_count = 2,
                   .results = {}};
  report.results.push_back({.bytes = 4096,
                            .answer_bytes = 2048,
                            .best_seconds = 4e-6,
                            .median_seconds = 5e-6,
                            .p99_seconds = 6e-6,
                            .p999_seconds = 7e-6,
                            .dispatch_gbps = 8,
                            .answer_gbps = 4,
                            .bound_seconds = 2e-6});
  return report;
}

TEST(M2nReport, TheTableHoldsTimesAndShares) {
  const std::string table = format_m2n_report(example());
  EXPECT_THAT(table, HasSubstr("2 senders, 3 receivers on shm, 7 round trips each\n"
                               "pinned to 1,0; waiting peers sleep; 5 peers share 2 cores\n"));
  EXPECT_THAT(table, ContainsRegex("4096 +2048 +4.00 +5.00 +6.00 +7.00 +8.00 +4.00 +2.00 +50% +40% "
                                   "+-\n"));
}

TEST(M2nReport, TheJsonHoldsTheSame) {
  const auto json = nlohmann::json::parse(m2n_report_json(example()));
  EXPECT_EQ(json["fabric"], "shm");
  EXPECT_EQ(json["senders"], 2);
  EXPECT_EQ(json["pinned_to"], (std::vector<int>{1, 0}));
  EXPECT_EQ(json["polling"], false);
  EXPECT_EQ(json["results"][0]["bytes"], 4096);
  EXPECT_DOUBLE_EQ(json["results"][0]["share_median"], 0.4);
}

}  // namespace
}  // namespace volley::bench
