// Goal: what the simulator promises beyond the pipeline formula: every request ends once, whatever
// happens to nodes; equal seeds give equal reports; times and shares add up; folding is faithful;
// the traces are well formed. Method: small clusters in virtual time, all of the production
// scheduler in them.

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "volley/simulation/simulate.h"

namespace volley::simulation {
namespace {

const perf::LinearTimes kTimes = {.layer = 100e-6,
                                  .layer_row = 1e-6,
                                  .layer_context = 1e-9,
                                  .step = 200e-6,
                                  .step_row = 0,
                                  .step_emit = 1e-6,
                                  .expert_layer = 20e-6,
                                  .expert = 30e-6,
                                  .expert_row = 1e-6};

SimulationOptions small() {
  SimulationOptions options;
  options.cluster.attention_nodes = 3;
  options.cluster.expert_nodes = 4;
  options.cluster.layers = 8;
  options.cluster.experts = 8;
  options.cluster.top_k = 2;
  options.cluster.row_bytes = options.cluster.answer_row_bytes = 4096;
  options.cluster.held = {{0, 1, 2, 3}, {2, 3, 4, 5}, {4, 5, 6, 7}, {6, 7, 0, 1}};
  options.cluster.micro_batches = 3;
  options.cluster.tokens_per_step = 32;
  options.cluster.sequences = 48;
  options.network = {.latency_s = 20e-6, .bytes_per_s = 10e9};
  options.workload.arrivals = WorkloadOptions::Arrivals::kPoisson;
  options.workload.rate = 60;
  options.workload.input = {.kind = LengthOptions::Kind::kUniform, .a = 1, .b = 60};
  options.workload.output = {.kind = LengthOptions::Kind::kLognormal, .a = 20, .b = 1, .max = 100};
  options.router = {.zipf = 0.7, .drift_s = 0.5};
  options.duration_s = 3;
  options.drain = true;
  return options;
}

Result<Report> run(const SimulationOptions& options) {
  const perf::LinearStageTimes times(kTimes);
  return simulate(options, times);
}

void expect_all_ended(const Report& report) {
  EXPECT_GT(report.accepted, 0);
  EXPECT_EQ(report.in_flight_at_end, 0);
  EXPECT_EQ(report.accepted, report.finished + report.failed);
  EXPECT_EQ(report.failed, report.failed_attention_died + report.failed_unavailable);
}

TEST(Simulation, EveryRequestEndsOnce) {
  const auto report = run(small());
  ASSERT_TRUE(report.ok()) << report.status();
  expect_all_ended(*report);
  EXPECT_EQ(report->failed, 0);
  EXPECT_EQ(report->rejected, 0);
  EXPECT_NEAR(report->accepted, 180, 50);  // Poisson: 3.7 standard deviations.
}

TEST(Simulation, ReplicasTakeOverFromADeadExpertNode) {
  SimulationOptions options = small();
  options.changes = {{.at_s = 1, .kind = ChangeOptions::Kind::kKill, .expert = true, .node = 1},
                     {.at_s = 2, .kind = ChangeOptions::Kind::kAdd, .expert = true, .node = 1}};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  expect_all_ended(*report);
  EXPECT_EQ(report->failed, 0);
  EXPECT_EQ(report->map_versions, 3u);
  EXPECT_NEAR(report->expert_nodes, 3 + 2.0 / 3, 0.01);
}

TEST(Simulation, WithoutAHolderRequestsEndAndLaterOnesAreServed) {
  SimulationOptions options = small();
  options.cluster.held.clear();
  options.changes = {{.at_s = 1, .kind = ChangeOptions::Kind::kKill, .expert = true, .node = 1},
                     {.at_s = 1.5, .kind = ChangeOptions::Kind::kAdd, .expert = true, .node = 1}};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  expect_all_ended(*report);
  EXPECT_GT(report->failed_unavailable, 0);
  EXPECT_GT(report->rejected, 0);
  EXPECT_GT(report->finished, 100);
}

TEST(Simulation, RequestsOfADeadAttentionNodeEnd) {
  SimulationOptions options = small();
  options.changes = {{.at_s = 1, .kind = ChangeOptions::Kind::kKill, .expert = false, .node = 2},
                     {.at_s = 2, .kind = ChangeOptions::Kind::kAdd, .expert = false, .node = 3}};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  expect_all_ended(*report);
  EXPECT_GT(report->failed_attention_died, 0);
  EXPECT_NEAR(report->attention_nodes, 2 + 2.0 / 3, 0.01);
}

TEST(Simulation, DrainedNodesLoseNothing) {
  SimulationOptions options = small();
  options.drain_s = 0.3;
  options.changes = {{.at_s = 1, .kind = ChangeOptions::Kind::kRemove, .expert = false, .node = 0},
                     {.at_s = 1, .kind = ChangeOptions::Kind::kRemove, .expert = true, .node = 0}};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  expect_all_ended(*report);
  EXPECT_EQ(report->failed, 0);
  EXPECT_LT(report->attention_nodes, 2.9);
  EXPECT_LT(report->expert_nodes, 3.6);
}

TEST(Simulation, ClosedLoopSurvivesManyChanges) {
  SimulationOptions options = small();
  options.workload.arrivals = WorkloadOptions::Arrivals::kClosed;
  options.workload.streams = 100;
  options.cluster.adaptive_micro_batches = true;
  for (uint32_t i = 0; i < 12; ++i) {
    options.changes.push_back(
        {.at_s = 0.2 + 0.2 * i,
         .kind = i % 2 == 0 ? ChangeOptions::Kind::kKill : ChangeOptions::Kind::kAdd,
         .expert = i % 4 < 2,
         .node = i / 4});
  }
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    options.seed = seed;
    const auto report = run(options);
    ASSERT_TRUE(report.ok()) << report.status();
    expect_all_ended(*report);
    EXPECT_GT(report->finished, 200);
  }
}

TEST(Simulation, EqualSeedsGiveEqualReports) {
  SimulationOptions options = small();
  options.trace = {.from_s = 1, .length_s = 0.05};
  options.changes = {{.at_s = 1, .kind = ChangeOptions::Kind::kKill, .expert = true, .node = 1}};
  const auto first = run(options), second = run(options);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(report_json(*first, false), report_json(*second, false));
  EXPECT_EQ(trace_json(first->trace), trace_json(second->trace));
  options.seed = 2;
  const auto other = run(options);
  ASSERT_TRUE(other.ok());
  EXPECT_NE(report_json(*first, false), report_json(*other, false));
}

TEST(Simulation, TimesOfNodesAddUpToTheCountedTime) {
  SimulationOptions options = small();
  options.warm_up_s = 0.5;
  options.drain = false;
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_NEAR(report->attention.total(), 3 * 2.5, 1e-3);
  EXPECT_NEAR(report->expert.total(), 4 * 2.5, 1e-3);
  EXPECT_GT(report->attention.no_work, 0);
  EXPECT_GT(report->attention.expert_compute, 0);
  EXPECT_GT(report->expert.attention, 0);
}

TEST(Simulation, BytesAreThoseOfTheMessages) {
  SimulationOptions options = small();
  options.cluster = {};
  options.cluster.layers = 3;
  options.cluster.row_bytes = 100;
  options.cluster.answer_row_bytes = 200;
  options.cluster.micro_batches = 1;
  options.router = {};
  options.workload = {};
  options.workload.arrivals = WorkloadOptions::Arrivals::kListed;
  options.workload.requests = {{.arrival_s = 0.001, .input = 5, .output = 2}};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  // Two steps of three layers, with 5 rows and 1 row: header, entries and rows of each.
  EXPECT_EQ(report->messages, 12);
  EXPECT_EQ(report->dispatch_bytes, 3 * (64 + 5 * 8 + 5 * 100) + 3 * (64 + 8 + 100));
  EXPECT_EQ(report->answer_bytes, 3 * (64 + 5 * 200) + 3 * (64 + 200));
  EXPECT_EQ(report->tokens, 2);
}

TEST(Simulation, PreReducedAnswersHaveARowPerRow) {
  SimulationOptions options = small();
  options.cluster = {};
  options.cluster.layers = 3;
  options.cluster.experts = options.cluster.top_k = 4;
  options.cluster.row_bytes = options.cluster.answer_row_bytes = 100;
  options.cluster.pre_reduce = true;
  options.router = {};
  options.workload = {};
  options.workload.arrivals = WorkloadOptions::Arrivals::kListed;
  options.workload.requests = {{.arrival_s = 0.001, .input = 5, .output = 1}};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  // Every row goes to the four experts of the one node; entries have weights.
  EXPECT_EQ(report->dispatch_bytes, 3 * (64 + 20 * (8 + 4) + 5 * 100));
  EXPECT_EQ(report->answer_bytes, 3 * (64 + 5 * 100));
}

TEST(Simulation, SkewShowsInTheExpertLoad) {
  SimulationOptions options = small();
  options.cluster.top_k = 1;
  options.router = {.zipf = 1, .per_layer = false};
  options.duration_s = 2;
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  double sum = 0;
  for (int rank = 1; rank <= 8; ++rank) sum += 1.0 / rank;
  for (uint32_t expert = 0; expert < 8; ++expert) {
    const double expected = 8 / (expert + 1.0) / sum;
    EXPECT_NEAR(report->expert_load[expert], expected, 0.06 * expected) << "expert " << expert;
  }
}

TEST(Simulation, FoldedReplicasStandForAll) {
  SimulationOptions options = small();
  options.cluster.layers = 4;
  options.workload.arrivals = WorkloadOptions::Arrivals::kClosed;
  options.workload.prefilled = true;
  options.workload.aged = true;
  options.replicas = 12;
  options.workload.streams = 12 * 90;
  options.duration_s = 2;
  options.warm_up_s = 0.5;
  options.drain = false;
  const auto all = run(options);
  options.simulated = 3;
  const auto folded = run(options);
  ASSERT_TRUE(all.ok() && folded.ok());
  EXPECT_EQ(all->simulated_replicas, 12u);
  EXPECT_EQ(folded->simulated_replicas, 3u);
  EXPECT_NEAR(folded->attention_nodes, all->attention_nodes, 1e-9);
  EXPECT_NEAR(folded->tokens_per_s, all->tokens_per_s, 0.02 * all->tokens_per_s);
  EXPECT_NEAR(folded->inter_token.mean(), all->inter_token.mean(), 0.02 * all->inter_token.mean());
  EXPECT_NEAR(folded->expert.computing, all->expert.computing, 0.02 * all->expert.computing);
  EXPECT_NEAR(folded->attention.computing, all->attention.computing,
              0.02 * all->attention.computing);
}

TEST(Simulation, ChangesKeepTheirReplicaOutOfTheFold) {
  SimulationOptions options = small();
  options.replicas = 5;
  options.workload.rate = 200;
  options.simulated = 1;
  options.changes = {
      {.at_s = 1, .kind = ChangeOptions::Kind::kKill, .expert = false, .node = 0, .replica = 3}};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->simulated_replicas, 2u);
  EXPECT_NEAR(report->attention_nodes, 4 * 3 + 2 + 1.0 / 3, 0.01);
}

TEST(Simulation, AutoChoosesMicroBatchesThatHideTheNetwork) {
  // T_a = T_e with hardly anything per row, T_c = 0.4 of it: three micro-batches.
  SimulationOptions options;
  options.cluster.layers = 16;
  options.cluster.micro_batches = 4;
  options.cluster.adaptive_micro_batches = true;
  options.cluster.tokens_per_step = 64;
  options.cluster.gather_rows = 64;
  options.network = {.latency_s = 200e-6, .bytes_per_s = 1e12};
  options.workload.streams = 192;
  options.workload.prefilled = true;
  options.workload.output = {.kind = LengthOptions::Kind::kFixed, .a = 2000};
  options.duration_s = 20;
  options.warm_up_s = 10;
  const perf::LinearStageTimes times(
      {.layer = 20e-6, .layer_row = 7.5e-6, .expert_layer = 20e-6, .expert_row = 7.5e-6});
  const auto report = simulate(options, times);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->micro_batches, 2.7);
  EXPECT_LT(report->micro_batches, 3.4);
}

TEST(Simulation, TracesAreWellFormed) {
  SimulationOptions options = small();
  options.trace = {.from_s = 1, .length_s = 0.02, .nodes_max = 2};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_FALSE(report->trace.spans.empty());
  const auto json = nlohmann::json::parse(trace_json(report->trace));
  size_t complete = 0;
  for (const auto& event : json.at("traceEvents")) {
    if (event.at("ph") != "X") continue;
    ++complete;
    EXPECT_GE(event.at("dur").get<double>(), 0);
    EXPECT_GE(event.at("ts").get<double>() + event.at("dur").get<double>(), 1e6);
    EXPECT_LE(event.at("ts").get<double>(), 1.02e6);
  }
  EXPECT_EQ(complete, report->trace.spans.size());
  EXPECT_TRUE(nlohmann::json::accept(report_json(*report, true)));

  const std::string svg = trace_svg(report->trace, "a < b & c");
  EXPECT_TRUE(svg.starts_with("<svg"));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_NE(svg.find("attention-1"), std::string::npos);
  EXPECT_EQ(svg.find("attention-2"), std::string::npos);  // nodes_max
}

TEST(Simulation, TracesAreBounded) {
  SimulationOptions options = small();
  options.trace = {.from_s = 0, .length_s = 3, .nodes_max = 16, .spans_max = 100};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->trace.spans.size(), 100u);
  EXPECT_TRUE(report->trace.cut);
}

TEST(Simulation, OneNodeAtATimeComputesOneThing) {
  SimulationOptions options = small();
  options.trace = {.from_s = 0.5, .length_s = 0.5};
  const auto report = run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  std::map<std::tuple<bool, bool, uint32_t>, Nanos> last_end;
  for (const TraceSpan& span : report->trace.spans) {
    if (span.kind == TraceSpan::Kind::kGatherWindow) continue;
    const bool sends = span.kind == TraceSpan::Kind::kSend;
    Nanos& end = last_end[{sends, span.expert, span.node}];
    EXPECT_GE(span.begin, end);
    end = span.end;
  }
}

TEST(Simulation, RefusesWhatCannotBe) {
  const auto refused = [](const std::function<void(SimulationOptions&)>& edit) {
    SimulationOptions options = small();
    edit(options);
    return run(options).status().code() == StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused([](SimulationOptions&) {}));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.top_k = 9; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.held[1] = {8}; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.held[1] = {1, 1}; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.held.pop_back(); }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.micro_batches = 17; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.kv_blocks = 9; }));  // 160 tokens need 10.
  EXPECT_FALSE(refused([](auto& o) { o.cluster.kv_blocks = 10; }));
  EXPECT_TRUE(refused([](auto& o) {
    o.cluster.tokens_per_step = 1 << 20;
    o.cluster.top_k = 8;
  }));
  EXPECT_TRUE(refused([](auto& o) {
    o.cluster.tokens_per_step = 1 << 17;
    o.cluster.slot_rows = 1;
  }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.attention_nodes = 300'000; }));
  EXPECT_TRUE(refused([](auto& o) { o.workload.rate = 0; }));
  EXPECT_TRUE(refused([](auto& o) { o.workload.output.max = 10; }));
  EXPECT_TRUE(refused([](auto& o) { o.network.bytes_per_s = 0; }));
  EXPECT_TRUE(refused([](auto& o) { o.warm_up_s = 3; }));
  EXPECT_TRUE(refused([](auto& o) { o.duration_s = std::nan(""); }));
  EXPECT_TRUE(refused([](auto& o) { o.changes = {{.at_s = 1, .replica = 1}}; }));
}

TEST(Histogram, QuantilesAreWithinAPercent) {
  Histogram times;
  for (int i = 1; i <= 1000; ++i) times.add(i * 1e-3);
  EXPECT_NEAR(times.mean(), 0.5005, 1e-9);
  EXPECT_NEAR(times.quantile(0.5), 0.5, 0.005);
  EXPECT_NEAR(times.quantile(0.99), 0.99, 0.01);
  EXPECT_EQ(times.max(), 1.0);
  Histogram both;
  both.merge(times, 2);
  EXPECT_EQ(both.count(), 2000);
  EXPECT_NEAR(both.quantile(0.9), 0.9, 0.009);
}

}  // namespace
}  // namespace volley::simulation
