// Goal: the closed forms of the pipeline are right, and agree with the paper's own figures.
// Method: a discrete-event simulation of four FIFO resources, written here, as the definition;
// figures of the paper (arXiv 2504.02263v1, sections 4 and 7) as oracles.

#include "volley/planner/pipeline.h"

#include <gtest/gtest.h>

#include <array>
#include <tuple>

#include "volley/base/random.h"
#include "volley/scheduler/micro_batch_controller.h"

namespace volley::planner {
namespace {

LayerTimes layer(double attention, double expert, double transfer) {
  return {.attention = attention,
          .expert = expert,
          .dispatch = {.total = transfer, .wire = transfer},
          .combine = {.total = transfer, .wire = transfer}};
}

/// When the last of m micro-batches has left the last layer. Each resource takes micro-batches one
/// at a time, first come first served; all start together.
double simulate(const LayerTimes& times, uint32_t micro_batches, uint32_t layers) {
  const std::array<double, 4> busy = {times.attention, times.dispatch.wire, times.expert,
                                      times.combine.wire};
  const std::array<double, 4> total = {times.attention, times.dispatch.total, times.expert,
                                       times.combine.total};
  std::array<double, 4> free{};
  std::vector<double> ready(micro_batches, 0);
  double end = 0;
  for (uint32_t layer_index = 0; layer_index < layers; ++layer_index) {
    for (double& at : ready) {
      for (size_t resource = 0; resource < busy.size(); ++resource) {
        const double start = std::max(at, free[resource]);
        free[resource] = start + busy[resource];
        at = start + total[resource];
      }
      end = std::max(end, at);
    }
  }
  return end;
}

TEST(Pipeline, BatchTimeIsWhatASimulationTakes) {
  // Six settings by four numbers of micro-batches: equal stages, either side slower, and T_c from a
  // tenth of T_f to nearly all of it.
  for (const auto& [attention, expert, transfer] : {std::tuple{1.0, 1.0, 0.1},
                                                    {1.0, 1.0, 0.49},
                                                    {1.0, 1.0, 0.9},
                                                    {1.0, 0.6, 0.3},
                                                    {0.5, 1.0, 0.45},
                                                    {1.0, 0.2, 0.75}}) {
    for (uint32_t m = 1; m <= 4; ++m) {
      const LayerTimes times = layer(attention, expert, transfer);
      EXPECT_NEAR(batch_time(times, m, 40), simulate(times, m, 40), 1e-9)
          << attention << " " << expert << " " << transfer << " m " << m;
      // It is the scheduler's formula wherever the network is not the slowest.
      EXPECT_NEAR(batch_time(times, m, 40),
                  scheduler::pipeline_time(
                      {.attention = attention, .expert = expert, .transfer = transfer}, m, 40),
                  1e-9);
    }
  }
}

TEST(Pipeline, BatchTimeHoldsWhenTheNetworkIsTheSlowest) {
  SplitMix64 random(7);
  for (int i = 0; i < 200; ++i) {
    LayerTimes times = layer(random.unit(), random.unit(), 0);
    times.dispatch.wire = 2 * random.unit();
    times.combine.wire = 2 * random.unit();
    times.dispatch.total = times.dispatch.wire + random.unit();
    times.combine.total = times.combine.wire + random.unit();
    const auto m = static_cast<uint32_t>(1 + random.below(6));
    const auto layers = static_cast<uint32_t>(1 + random.below(20));
    EXPECT_NEAR(batch_time(times, m, layers), simulate(times, m, layers), 1e-9) << i;
  }
}

TEST(Pipeline, LaterStepsFollowAfterOnePeriod) {
  // Steps in a row are one long pass through all their layers: the period is what a step adds.
  for (uint32_t m = 1; m <= 4; ++m) {
    const LayerTimes times = layer(1.0, 0.7, 0.6);
    const double period = simulate(times, m, 40 * 11) - simulate(times, m, 40 * 10);
    EXPECT_NEAR(token_period(times, m, 40), period, 1e-9) << m;
  }
}

TEST(Pipeline, IterationLiesWithinTheBoundsOfFormulaFour) {
  const LayerTimes times = layer(1.0, 1.0, 0.3);
  const IterationBounds bounds = iteration_bounds(times, 3, 40);
  EXPECT_DOUBLE_EQ(bounds.least, 2.6 + 3 * 39);
  EXPECT_DOUBLE_EQ(bounds.most, 3 * 40);
  EXPECT_LE(bounds.least, bounds.most);
}

TEST(Pipeline, MicroBatchesThatHideCommunication) {
  EXPECT_EQ(micro_batches_min(0.10), 3u);
  EXPECT_EQ(micro_batches_min(0.49), 3u);
  EXPECT_EQ(micro_batches_min(0.50), 3u);
  EXPECT_EQ(micro_batches_min(0.75), 4u);
  EXPECT_EQ(micro_batches_min(0.99), 4u);
  EXPECT_EQ(micro_batches_min(0), 2u);
}

TEST(Pipeline, BytesPerPairOfThePapersExample) {
  EXPECT_DOUBLE_EQ(pair_bytes(128, 2, 8, 6144 * 2, 2), 196'608);   // Mixtral 8x22B
  EXPECT_DOUBLE_EQ(pair_bytes(128, 4, 16, 6144 * 2, 2), 196'608);  // DBRX
}

TEST(Pipeline, MicroBatchSweepOfFigure12) {
  // T_c / T_f as back-computed from the figure, T_a = T_e; then the ratios of tokens per second at
  // constant micro-batch size: plotted 1.92 1.10 1.005, 1.93 1.28 1.011, 1.86 1.39 1.023.
  struct Model {
    double ratio, two, three, four;
  };
  for (const Model& model : {Model{0.10, 1.92, 1.10, 1.005}, Model{0.28, 1.93, 1.28, 1.011},
                             Model{0.39, 1.86, 1.39, 1.023}}) {
    const LayerTimes times = layer(1, 1, model.ratio);
    const auto rate = [&](uint32_t m) { return m / token_period(times, m, 48); };
    EXPECT_NEAR(rate(2) / rate(1), model.two, 0.08 * model.two);
    EXPECT_NEAR(rate(3) / rate(2), model.three, 0.01 * model.three);
    EXPECT_NEAR(rate(4) / rate(3), model.four, 0.03 * model.four);
  }
}

TEST(Pipeline, PhaseTimeIsThePapersFitOfItsLibrary) {
  // Fig. 10: one sender to N = 8 receivers, 200 Gb/s, medians in us.
  perf::Device device;
  device.network_bytes_per_s = 25e9;
  device.efficiency.network = perf::Curve(0.968);
  device.efficiency.message_s = 28e-6;
  for (const auto& [kib, us] : {std::pair{2, 28},
                                {4, 28},
                                {8, 30},
                                {16, 32},
                                {32, 40},
                                {64, 51},
                                {128, 73},
                                {256, 116},
                                {512, 201},
                                {1024, 373},
                                {2048, 709},
                                {4096, 1398},
                                {8192, 2770}}) {
    const double bytes = 8.0 * kib * 1024;
    EXPECT_NEAR(phase_time(device, bytes, device, bytes).total * 1e6, us, 0.055 * us) << kib;
  }
}

TEST(Pipeline, PhaseWaitsForTheSlowerEnd) {
  perf::Device slow, fast;
  slow.network_bytes_per_s = 10e9;
  fast.network_bytes_per_s = 50e9;
  slow.efficiency.message_s = 5e-6;
  slow.efficiency.network = fast.efficiency.network = perf::Curve(1.0);
  EXPECT_DOUBLE_EQ(phase_time(fast, 100e3, slow, 10e3).wire, 2e-6);
  EXPECT_DOUBLE_EQ(phase_time(fast, 10e3, slow, 100e3).wire, 10e-6);
  EXPECT_DOUBLE_EQ(phase_time(fast, 10e3, slow, 100e3).total, 15e-6);
  EXPECT_DOUBLE_EQ(phase_time(slow, 0, slow, 0).total, 0);
}

TEST(Pipeline, ColocatedComputesOneAfterTheOther) {
  LayerTimes times = layer(1.0, 0.5, 0.5);
  times.colocated = true;
  EXPECT_DOUBLE_EQ(token_period(times, 1, 10), 25);
  EXPECT_DOUBLE_EQ(token_period(times, 2, 10), 30);  // Two batches; communication is hidden.
}

}  // namespace
}  // namespace volley::planner
