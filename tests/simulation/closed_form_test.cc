// Goal: on deterministic inputs the simulator agrees with the pipeline formulas of MegaScale-Infer
// (scheduler::pipeline_time) to 0.1 %. Method: one attention and one expert node, times that do not
// depend on anything, one sequence per micro-batch: one step of all, and the steady state.

#include <gtest/gtest.h>

#include <algorithm>

#include "volley/scheduler/micro_batch_controller.h"
#include "volley/simulation/simulate.h"

namespace volley::simulation {
namespace {

struct Times {
  double attention, expert, transfer;  // Seconds.
};

constexpr uint32_t kLayers = 40;

SimulationOptions pair(const Times& times, uint32_t micro_batches) {
  SimulationOptions options;
  options.cluster.layers = kLayers;
  options.cluster.micro_batches = micro_batches;
  // A dispatch is a run: the formulas do not merge dispatches of different micro-batches.
  options.cluster.gather_rows = 1;
  options.network = {.latency_s = times.transfer, .bytes_per_s = 1e15};
  options.workload.streams = micro_batches;
  return options;
}

perf::LinearStageTimes stage_times(const Times& times) {
  return perf::LinearStageTimes({.layer = times.attention, .expert_layer = times.expert});
}

const Times kSettings[] = {
    {100e-6, 100e-6, 30e-6}, {100e-6, 100e-6, 80e-6}, {100e-6, 50e-6, 10e-6},
    {50e-6, 100e-6, 10e-6},  {100e-6, 90e-6, 49e-6},  {80e-6, 100e-6, 60e-6},
};

TEST(ClosedForm, OneStepOfAllMicroBatches) {
  for (const Times& times : kSettings) {
    for (uint32_t m = 1; m <= 4; ++m) {
      SimulationOptions options = pair(times, m);
      options.workload.output.a = 1;
      options.workload.arrivals = WorkloadOptions::Arrivals::kListed;
      for (uint32_t i = 0; i < m; ++i) options.workload.requests.push_back({0, 1, 1});
      const perf::LinearStageTimes stages = stage_times(times);
      const auto report = simulate(options, stages);
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_EQ(report->finished, m);
      const double expected =
          scheduler::pipeline_time(
              {times.attention * 1e9, times.expert * 1e9, times.transfer * 1e9}, m, kLayers) /
          1e9;
      EXPECT_NEAR(report->ttft.max(), expected, expected * 1e-3)
          << "m " << m << ", T_a " << times.attention << ", T_e " << times.expert << ", T_c "
          << times.transfer;
    }
  }
}

TEST(ClosedForm, SteadyState) {
  for (const Times& times : kSettings) {
    for (uint32_t m = 1; m <= 4; ++m) {
      SimulationOptions options = pair(times, m);
      options.workload.output = {.kind = LengthOptions::Kind::kFixed, .a = 100'000};
      options.duration_s = 4;
      options.warm_up_s = 0.5;
      const perf::LinearStageTimes stages = stage_times(times);
      const auto report = simulate(options, stages);
      ASSERT_TRUE(report.ok()) << report.status();
      const double x = times.attention + times.expert + 2 * times.transfer;
      const double period = kLayers * std::max({m * times.attention, m * times.expert, x});
      EXPECT_NEAR(report->inter_token.mean(), period, period * 1e-3)
          << "m " << m << ", T_a " << times.attention << ", T_e " << times.expert << ", T_c "
          << times.transfer;
    }
  }
}

}  // namespace
}  // namespace volley::simulation
