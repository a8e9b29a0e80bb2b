// Goal: the controller finds the number of micro-batches that the cost model calls best, stays with
// it under noise, and says why.
// Method: a node whose times are affine in the rows is played step by step on a virtual clock; the
// optimum comes from the same formula with the true times.

#include "volley/scheduler/micro_batch_controller.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "volley/base/random.h"

namespace volley::scheduler {
namespace {

struct Costs {
  double attention_fixed = 0, attention_row = 0;
  double expert_fixed = 0, expert_row = 0;
  double transfer_fixed = 0, transfer_row = 0;

  PhaseTimes at(double rows) const {
    return {.attention = attention_fixed + attention_row * rows,
            .expert = expert_fixed + expert_row * rows,
            .transfer = transfer_fixed + transfer_row * rows};
  }
};

/// An attention node that decodes `sequences` sequences with whatever m the controller says.
class Node {
 public:
  Node(const MicroBatchControllerOptions& options, const Costs& costs, uint64_t seed = 1,
       double noise = 0)
      : options_(options), costs_(costs), controller_(options), random_(seed), noise_(noise) {}

  void run(uint32_t steps, uint32_t sequences) {
    for (uint32_t i = 0; i < steps; ++i) step(sequences);
  }
  /// One step of one micro-batch.
  void step(uint32_t sequences) {
    const uint32_t m = controller_.decision().micro_batches;
    const uint32_t used = std::min(m, sequences);
    next_ = (next_ + 1) % used;
    const uint32_t rows =
        std::min(options_.rows_max, sequences / used + (next_ < sequences % used ? 1 : 0));
    const PhaseTimes times = costs_.at(rows);
    const double one = times.attention + times.expert + 2 * times.transfer;
    const double slack = used * std::max(times.attention, times.expert) - one;
    controller_.on_expert(rows, noisy(times.expert), now_);
    // Whoever is waited for is busy when a message comes; then it lies for a while.
    const double waiting = std::max(0.0, slack / 2);
    controller_.on_transfer(rows, noisy(times.transfer + waiting), slack <= 0, now_);
    controller_.on_attention(rows, noisy(times.attention), now_);
    const auto elapsed = static_cast<Nanos>(pipeline_time(times, used, options_.layers) / used);
    now_ += elapsed;
    const MicroBatchDecision before = controller_.decision();
    if (before.why == MicroBatchDecision::Why::kTrial) trial_time_ += elapsed;
    if (controller_.decide(sequences, now_) == before.micro_batches) return;
    ++changes_;
    const bool trial = before.why == MicroBatchDecision::Why::kTrial ||
                       controller_.decision().why == MicroBatchDecision::Why::kTrial;
    if (!trial) last_change_ = now_;
  }

  double rate(uint32_t m, uint32_t sequences) const {
    const uint32_t used = std::min(m, sequences);
    const double rows = std::min<double>(options_.rows_max, static_cast<double>(sequences) / used);
    return used * rows / pipeline_time(costs_.at(rows), used, options_.layers);
  }
  double best_rate(uint32_t sequences) const {
    double best = 0;
    for (uint32_t m = 1; m <= options_.micro_batches_max; ++m)
      best = std::max(best, rate(m, sequences));
    return best;
  }

  const MicroBatchController& controller() const { return controller_; }
  uint32_t m() const { return controller_.decision().micro_batches; }
  uint32_t changes() const { return changes_; }
  Nanos trial_time() const { return trial_time_; }
  /// The last change but for those of trials.
  Nanos last_change() const { return last_change_; }
  Nanos now() const { return now_; }
  void set_costs(const Costs& costs) { costs_ = costs; }

 private:
  Nanos noisy(double time) {
    const double unit = static_cast<double>(random_.below(2'000'001)) / 1'000'000 - 1;
    return static_cast<Nanos>(time * (1 + noise_ * unit));
  }

  const MicroBatchControllerOptions options_;
  Costs costs_;
  MicroBatchController controller_;
  SplitMix64 random_;
  double noise_;
  Nanos now_ = kSecond;
  uint32_t next_ = 0;
  uint32_t changes_ = 0;
  Nanos trial_time_ = 0;
  Nanos last_change_ = 0;
};

constexpr MicroBatchControllerOptions kOptions{
    .micro_batches_max = 4, .rows_max = 256, .layers = 8};

TEST(PipelineTime, FollowsThePaper) {
  // m T_f >= X: (T_a + T_e + 2 T_c) + T_f (m L - 1).
  EXPECT_DOUBLE_EQ(pipeline_time({.attention = 10, .expert = 10, .transfer = 3}, 3, 40),
                   26 + 10 * (3 * 40 - 1));
  // Below: L X + (m - 1) T_f.
  EXPECT_DOUBLE_EQ(pipeline_time({.attention = 10, .expert = 10, .transfer = 3}, 1, 40), 40 * 26);
  EXPECT_DOUBLE_EQ(pipeline_time({.attention = 10, .expert = 8, .transfer = 5}, 2, 40),
                   40 * 28 + 10);
}

TEST(MicroBatchController, FindsTheOptimumOverAGridOfCosts) {
  for (const double fixed_us : {0.0, 50.0, 400.0, 2'000.0}) {
    for (const double row_us : {1.0, 10.0, 60.0}) {
      for (const double expert_share : {0.3, 1.0, 1.7}) {
        for (const double transfer_us : {1.0, 30.0, 300.0, 1'500.0}) {
          for (const uint32_t sequences : {1u, 4u, 16u, 64u}) {
            const Costs costs{.attention_fixed = fixed_us * 1e3,
                              .attention_row = row_us * 1e3,
                              .expert_fixed = expert_share * fixed_us * 1e3,
                              .expert_row = expert_share * row_us * 1e3,
                              .transfer_fixed = transfer_us * 1e3,
                              .transfer_row = 0.1 * row_us * 1e3};
            Node node(kOptions, costs);
            node.run(1'500, sequences);
            // Within the hysteresis of the best; a trial that happens to be on does not count.
            while (node.controller().decision().why == MicroBatchDecision::Why::kTrial)
              node.step(sequences);
            EXPECT_GT(1.06 * node.rate(node.m(), sequences), node.best_rate(sequences))
                << "fixed " << fixed_us << " row " << row_us << " share " << expert_share << " T_c "
                << transfer_us << " sequences " << sequences << ": "
                << describe(node.controller().decision());
          }
        }
      }
    }
  }
}

TEST(MicroBatchController, PaysForItselfWhereBatchesShrinkInProportion) {
  // Without fixed costs the rule m >= 2 (1 + T_c / T_f) falls out; T_c shrinks with the batch too.
  for (const double transfer : {0.0, 0.2, 0.4}) {
    const Costs costs{.attention_row = 1e4, .expert_row = 1e4, .transfer_row = transfer * 1e4};
    Node node({.micro_batches_max = 6, .rows_max = 256, .layers = 40}, costs);
    node.run(5'000, 48);
    EXPECT_GE(node.m(), 2 * (1 + transfer)) << describe(node.controller().decision());
  }
}

TEST(MicroBatchController, FixedCostsAloneCallForOneBatch) {
  // A batch of half the size costs the same: splitting it only doubles the work.
  Node node(kOptions, {.attention_fixed = 1e6, .expert_fixed = 1e5, .transfer_fixed = 1e4});
  node.run(2'000, 32);
  EXPECT_EQ(node.m(), 1u);
}

TEST(MicroBatchController, NoiseCausesFewChanges) {
  const Costs settings[] = {
      // Without fixed costs 3 and 4 are as good as each other.
      {.attention_row = 2e4, .expert_row = 2e4, .transfer_fixed = 1e5},
      {.attention_row = 2e4, .expert_row = 2e4},
      {.attention_fixed = 3e5, .attention_row = 2e4, .expert_fixed = 3e5, .expert_row = 2e4},
      {.attention_fixed = 2e5,
       .attention_row = 1e4,
       .expert_fixed = 1e5,
       .expert_row = 3e4,
       .transfer_fixed = 2e5},
  };
  for (const Costs& costs : settings) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      Node node(kOptions, costs, seed, 0.1);
      node.run(2'000, 32);
      const Nanos settled = node.now();
      node.run(8'000, 32);
      EXPECT_LE(node.last_change(), settled) << "seed " << seed;
      // A trial is two changes; each other number is tried again when it has gone stale.
      const auto stale = static_cast<uint32_t>(node.now() / TimeCurve::kStale) + 1;
      EXPECT_LE(node.changes(), 4 + 2 * 3 * stale)
          << "seed " << seed << ": " << describe(node.controller().decision());
      while (node.controller().decision().why == MicroBatchDecision::Why::kTrial) node.step(32);
      EXPECT_GT(1.12 * node.rate(node.m(), 32), node.best_rate(32)) << "seed " << seed;
    }
  }
}

TEST(MicroBatchController, TrialsTakeLessThanATenthOfTheTime) {
  // Slow steps: what was measured goes stale between two looks at it, so trials never end.
  const Costs costs{.attention_fixed = 5e6, .attention_row = 1e6, .expert_row = 2e6};
  Node node(kOptions, costs, 1, 0.1);
  node.run(5'000, 32);
  ASSERT_GT(node.now(), 10 * TimeCurve::kStale);
  EXPECT_GT(node.trial_time(), 0);
  EXPECT_LT(node.trial_time() * 10, node.now());
}

TEST(MicroBatchController, ChangesKeepTheirDistance) {
  // Every half second the other of m = 1 and m = 2 is the better one by far.
  MicroBatchController controller({.micro_batches_max = 2, .rows_max = 256, .layers = 8});
  Nanos now = 0;
  uint32_t changes = 0;
  for (int step = 0; step < 10'000; ++step) {
    now += 10 * kMillisecond;
    const bool one = step / 50 % 2 == 0;
    for (const uint32_t rows : {16u, 32u}) {
      const Nanos time = rows == 32 ? kMillisecond : one ? 2 * kMillisecond : kMillisecond / 4;
      controller.on_attention(rows, time, now);
      controller.on_expert(rows, time, now);
      controller.on_transfer(rows, 1'000, true, now);
    }
    const uint32_t before = controller.decision().micro_batches;
    if (controller.decide(32, now) != before) ++changes;
  }
  EXPECT_GE(changes, 2u);
  EXPECT_LE(changes, 20u);  // Of 200 occasions: the pause soon is 20 s.
}

TEST(MicroBatchController, FollowsTheLoad) {
  const Costs costs{.attention_fixed = 2e5,
                    .attention_row = 4e4,
                    .expert_fixed = 2e5,
                    .expert_row = 4e4,
                    .transfer_fixed = 1e5};
  Node node(kOptions, costs);
  node.run(3'000, 1);
  EXPECT_EQ(node.m(), 1u) << describe(node.controller().decision());
  node.run(6'000, 64);
  EXPECT_GE(node.m(), 2u) << describe(node.controller().decision());
  EXPECT_GT(1.06 * node.rate(node.m(), 64), node.best_rate(64));
}

TEST(MicroBatchController, NothingMeasuredChangesNothing) {
  MicroBatchController controller(kOptions);
  for (int i = 0; i < 1'000; ++i) EXPECT_EQ(controller.decide(32, i * kMillisecond), 1u);
  EXPECT_EQ(controller.decision().why, MicroBatchDecision::Why::kUnmeasured);
  // T_a alone is not enough either.
  for (int i = 0; i < 1'000; ++i) {
    controller.on_attention(32, kMillisecond, i * kMillisecond);
    EXPECT_EQ(controller.decide(32, i * kMillisecond), 1u);
  }
  EXPECT_EQ(controller.decide(0, kSecond), 1u);
}

TEST(MicroBatchController, SharedCoresMeanOne) {
  MicroBatchControllerOptions options = kOptions;
  options.overlap = false;
  Node node(options, {.attention_row = 1e5, .expert_row = 1e5});
  node.run(1'000, 32);
  EXPECT_EQ(node.m(), 1u);
  EXPECT_EQ(node.changes(), 0u);
  EXPECT_EQ(describe(node.controller().decision()), "m=1: attention and experts share their cores");
}

TEST(MicroBatchController, SaysWhy) {
  EXPECT_EQ(describe({.micro_batches = 2}), "m=2: as configured");
  EXPECT_EQ(describe({.why = MicroBatchDecision::Why::kPredicted,
                      .micro_batches = 3,
                      .rows = 16,
                      .times = {.attention = 1.1e6, .expert = 1.05e6, .transfer = 3.2e4},
                      .layer_ns = 3.4e6,
                      .other = 2,
                      .other_layer_ns = 4.1e6}),
            "m=3: T_a 1.10 ms, T_e 1.05 ms, T_c 32.0 us at 16 rows; predicted 3.40 ms/layer "
            "against 4.10 ms at m=2");
  Node node(kOptions, {.attention_row = 1e5, .expert_row = 1e5, .transfer_fixed = 1e4});
  EXPECT_EQ(describe(node.controller().decision()), "m=1: not enough steps measured yet");
  node.run(3'000, 32);
  while (node.controller().decision().why == MicroBatchDecision::Why::kTrial) node.step(32);
  const MicroBatchDecision& decision = node.controller().decision();
  EXPECT_EQ(decision.why, MicroBatchDecision::Why::kPredicted);
  EXPECT_NE(decision.other, decision.micro_batches);
  EXPECT_GT(decision.other, 0u);
  EXPECT_NEAR(decision.times.attention, 1e5 * decision.rows, 1e4 * decision.rows);
}

}  // namespace
}  // namespace volley::scheduler
