// Goal: the prediction that benchmarks/pingpong holds its measurements against is right, and the
// times it is made from are read correctly from the spans.
// Method: a simulation of the pipeline, event by event, gives the traces; its own period must be
// the predicted one and the times found in its traces must be those it was made with.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "pingpong/trace_analysis.h"

namespace volley::benchmarks {
namespace {

using engine::Span;
using engine::SpanRecord;

constexpr uint32_t kRows = 8;

struct Costs {
  Nanos attention = 0, expert = 0, transfer = 0, head = 0;
};

/// One thread's trace: work is appended at or after the end of what came before, and the time
/// between is waiting.
class Lane {
 public:
  Nanos free_at() const { return now_; }
  void wait_until(Nanos when) {
    if (when > now_) add(Span::kWait, 0, 0, when - now_);
  }
  void add(Span kind, uint32_t micro_batch, uint32_t layer, Nanos time) {
    trace.push_back({.begin = now_,
                     .end = now_ + time,
                     .rows = kRows,
                     .micro_batch = static_cast<uint16_t>(micro_batch),
                     .layer = static_cast<uint16_t>(layer),
                     .kind = kind});
    now_ += time;
  }
  Trace trace;

 private:
  Nanos now_ = 0;
};

/// The pipeline with first come, first served on both nodes and `steps` steps of each micro-batch.
RunTrace simulate(const Costs& costs, uint32_t micro_batches, uint32_t layers, uint32_t steps) {
  struct MicroBatch {
    Nanos ready = 0;
    uint32_t layer = 0, step = 0;
  };
  std::vector<MicroBatch> batches(micro_batches);
  Lane attention, expert;
  while (true) {
    const auto next = std::ranges::min_element(batches, [&](const auto& a, const auto& b) {
      return (a.step < steps ? a.ready : INT64_MAX) < (b.step < steps ? b.ready : INT64_MAX);
    });
    if (next->step == steps) break;
    const auto id = static_cast<uint32_t>(next - batches.begin());
    attention.wait_until(next->ready);
    if (next->layer == layers) {  // The last layer's answers are in.
      attention.add(Span::kCombine, id, layers - 1, 0);
      attention.add(Span::kHead, id, layers - 1, costs.head / 2);
      attention.add(Span::kSample, id, layers - 1, costs.head - costs.head / 2);
      *next = {.ready = attention.free_at(), .layer = 0, .step = next->step + 1};
      continue;
    }
    if (next->layer > 0) attention.add(Span::kCombine, id, next->layer - 1, costs.attention / 10);
    const Nanos combine = next->layer > 0 ? costs.attention / 10 : 0;
    attention.add(Span::kAttention, id, next->layer, costs.attention - combine);
    attention.add(Span::kPost, id, next->layer, 0);
    expert.wait_until(attention.free_at() + costs.transfer);
    expert.add(Span::kPrepare, id, next->layer, costs.expert / 10);
    expert.add(Span::kFfn, id, next->layer, costs.expert - costs.expert / 10);
    expert.add(Span::kPost, id, next->layer, 0);
    next->ready = expert.free_at() + costs.transfer;
    ++next->layer;
  }
  return {.micro_batches = micro_batches,
          .rows = kRows,
          .layers = layers,
          .begin = 0,
          .end = attention.free_at(),
          .attention = attention.trace,
          .expert = expert.trace};
}

struct Case {
  Costs costs;
  uint32_t micro_batches;
};

class PingPongModel : public ::testing::TestWithParam<Case> {};

TEST_P(PingPongModel, PredictsTheSimulatedPipeline) {
  const auto& [costs, m] = GetParam();
  const uint32_t layers = 40;
  const RunTrace run = simulate(costs, m, layers, 40);
  const auto windows = find_windows(run, 8);
  ASSERT_TRUE(windows.ok()) << message_of(windows.status());
  ASSERT_GE(windows->size(), 3u);
  const Window& window = (*windows)[1];  // The first one still fills the pipeline.

  EXPECT_NEAR(window.times.attention, static_cast<double>(costs.attention),
              0.002 * static_cast<double>(costs.attention));
  EXPECT_NEAR(window.times.expert, static_cast<double>(costs.expert),
              0.002 * static_cast<double>(costs.expert));
  EXPECT_NEAR(window.times.head, static_cast<double>(costs.head),
              0.01 * static_cast<double>(costs.head) + 1);
  PhaseTimes known{.attention = static_cast<double>(costs.attention),
                   .expert = static_cast<double>(costs.expert),
                   .transfer = static_cast<double>(costs.transfer),
                   .head = static_cast<double>(costs.head)};
  if (m == 1) {  // No message ever finds its receiver at work.
    EXPECT_EQ(window.transfers, 2u * 8 * layers);
    EXPECT_NEAR(window.times.transfer, known.transfer, 1);
  }
  const double predicted = predicted_steps_per_s(known, m, layers);
  // The head stands in the way of the other micro-batches once a step: up to its share of the step.
  EXPECT_NEAR(window.steps_per_s / predicted, 1, 0.01);
  EXPECT_LE(window.steps_per_s, predicted * 1.0001);
}

INSTANTIATE_TEST_SUITE_P(
    All, PingPongModel,
    ::testing::Values(Case{{1000, 1000, 50, 0}, 1}, Case{{1000, 1000, 50, 0}, 2},
                      Case{{1000, 1000, 300, 0}, 2}, Case{{1000, 1000, 300, 0}, 3},
                      Case{{1000, 1000, 300, 0}, 4}, Case{{1000, 600, 100, 0}, 2},
                      Case{{600, 1000, 100, 0}, 3}, Case{{1000, 1000, 300, 100}, 1},
                      Case{{1000, 1000, 300, 100}, 2}, Case{{1000, 1000, 300, 100}, 3}));

// The total of the paper (section 4.1) for many layers is the steady state's period.
TEST(PingPongModel, AgreesWithThePaperForManyLayers) {
  const PhaseTimes times{.attention = 1000, .expert = 900, .transfer = 280, .head = 0};
  const uint32_t layers = 1000;
  for (uint32_t m = 1; m <= 4; ++m) {
    const double path = times.attention + times.expert + 2 * times.transfer;
    const double larger = std::max(times.attention, times.expert);
    const double total =
        std::max(path + larger * (m * layers - 1), layers * path + (m - 1) * larger);
    EXPECT_NEAR(predicted_period(times, m, layers) / total, 1, 0.005) << m;
  }
}

TEST(PingPongModel, RefusesWindowsThatAreNotThere) {
  const RunTrace run = simulate({1000, 1000, 50, 0}, 2, 4, 10);
  EXPECT_EQ(find_windows(run, 100).status().code(), StatusCode::kInternal);
  RunTrace uneven = run;
  uneven.rows = kRows + 1;
  EXPECT_EQ(find_windows(uneven, 2).status().code(), StatusCode::kInternal);
}

}  // namespace
}  // namespace volley::benchmarks
