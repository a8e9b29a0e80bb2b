// Goal: GATHER-1, GATHER-2 and the policy's promises: nodes come into step, nobody pays for it, one
// node's ping-pong survives. Method: single decisions by hand; then attention nodes and expert
// nodes reduced to their times (sim/gather_model.h), with and without waiting, over several seeds;
// then random events.
#include "volley/scheduler/gather.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>

#include "sim/gather_model.h"
#include "volley/base/random.h"

namespace volley::scheduler {
namespace {

using sim::GatherModelOptions;
using sim::run_gather_model;
using Kind = GatherDecision::Kind;

PendingDispatch dispatch(uint32_t link, uint32_t slot, uint32_t layer, Nanos arrived,
                         uint32_t entries = 8) {
  return {.link = LinkId{link},
          .slot = slot,
          .layer = layer,
          .entry_count = entries,
          .arrived = arrived};
}

/// A policy with two links of one micro-batch, both in step through two whole steps of four layers.
class GatherPair : public ::testing::Test {
 protected:
  static constexpr Nanos kTime = 100 * kMicrosecond;  // Run and turnaround alike.

  void SetUp() override {
    policy_.on_link_opened(LinkId{1}, 1);
    policy_.on_link_opened(LinkId{2}, 1);
    for (uint32_t layer = 0; layer < 8; ++layer) {
      policy_.on_dispatch(dispatch(1, 0, layer % 4, now_));
      policy_.on_dispatch(dispatch(2, 0, layer % 4, now_));
      ASSERT_EQ(policy_.decide(now_).kind, Kind::kRun);
      now_ += kTime;
      policy_.on_answered(now_, kTime);
      now_ += kTime;
    }
  }

  GatherPolicy policy_{{.layers = 4}};
  Nanos now_ = 0;
};

TEST_F(GatherPair, WaitsForAPredictedPeerAndNotForever) {
  policy_.on_dispatch(dispatch(1, 0, 0, now_));
  policy_.on_dispatch(dispatch(2, 0, 0, now_));
  ASSERT_EQ(policy_.decide(now_).dispatches.size(), 2u);
  policy_.on_answered(now_ + kTime, kTime);
  now_ += 2 * kTime - 10 * kMicrosecond;
  policy_.on_dispatch(
      dispatch(1, 0, 1, now_));  // Ten microseconds early: the peer is still to come.
  GatherDecision decision = policy_.decide(now_);
  ASSERT_EQ(decision.kind, Kind::kWait);
  EXPECT_GT(decision.wait_until, now_);
  EXPECT_LE(decision.wait_until, now_ + 6 * kTime);
  EXPECT_EQ(policy_.decide(decision.wait_until).kind, Kind::kRun);
}

TEST_F(GatherPair, DoesNotWaitForAClosedLinkOrATakeoverSlot) {
  policy_.on_link_closed(LinkId{2});
  policy_.on_dispatch(dispatch(1, 0, 0, now_));
  EXPECT_EQ(policy_.decide(now_).kind, Kind::kRun);
  policy_.on_answered(now_ + kTime, kTime);
  policy_.on_dispatch(dispatch(1, 1, 3, now_ + kTime));  // Slot 1 of one micro-batch: a takeover.
  EXPECT_EQ(policy_.decide(now_ + kTime).kind, Kind::kRun);
}

TEST_F(GatherPair, AnswersEmptyDispatchesAtOnceAndApart) {
  policy_.on_dispatch(dispatch(1, 0, 0, now_));
  policy_.on_dispatch(dispatch(2, 0, 0, now_, 0));
  GatherDecision decision = policy_.decide(now_);
  ASSERT_EQ(decision.kind, Kind::kRun);
  ASSERT_EQ(decision.dispatches.size(), 1u);
  EXPECT_EQ(decision.dispatches[0].link, LinkId{2});
  policy_.on_answered(now_, 0);
  decision = policy_.decide(now_);
  ASSERT_EQ(decision.kind, Kind::kRun);  // The peer has nothing for this layer.
  EXPECT_EQ(decision.dispatches[0].link, LinkId{1});
}

TEST_F(GatherPair, AnOldDispatchGoesFirst) {
  // Link 2 leaves the step and asks for layer 2 again and again; layer 1 of link 1 lags behind
  // nobody then, but it gets old (GATHER-2).
  policy_.on_dispatch(dispatch(2, 0, 3, now_ - 8 * kTime));
  policy_.on_dispatch(dispatch(1, 0, 0, now_));
  const GatherDecision decision = policy_.decide(now_);
  ASSERT_EQ(decision.kind, Kind::kRun);
  EXPECT_EQ(decision.layer, 3u);
}

TEST(Gather, IdleWithoutDispatches) {
  GatherPolicy policy({.layers = 2});
  EXPECT_EQ(policy.decide(0).kind, Kind::kIdle);
  policy.on_link_opened(LinkId{1}, 2);
  EXPECT_EQ(policy.decide(0).kind, Kind::kIdle);
}

TEST(Gather, RunsStayWithinRowsMaxButAreNeverEmpty) {
  GatherPolicy policy({.layers = 2, .rows_max = 10});
  for (uint32_t link = 1; link <= 3; ++link) {
    policy.on_link_opened(LinkId{link}, 1);
    policy.on_dispatch(dispatch(link, 0, 0, 10 - static_cast<Nanos>(link), link == 2 ? 40 : 5));
  }
  GatherDecision decision = policy.decide(10);
  ASSERT_EQ(decision.dispatches.size(), 1u);
  EXPECT_EQ(decision.dispatches[0].link, LinkId{3});  // The oldest; link 2 does not fit beside it.
  policy.on_answered(20, 10);
  decision = policy.decide(20);
  ASSERT_EQ(decision.dispatches.size(), 1u);
  EXPECT_EQ(decision.dispatches[0].link, LinkId{2});
  policy.on_answered(30, 10);
  EXPECT_EQ(policy.decide(30).dispatches.size(), 1u);
}

// --- What the policy is for
// ------------------------------------------------------------------------------

struct Outcome {
  double merged_min = 1, throughput_min = 10, waited_steps_max = 0;
};

Outcome compare(GatherModelOptions options, uint32_t seeds = 3) {
  Outcome outcome;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    options.seed = seed;
    options.wait = true;
    const auto waiting = run_gather_model(options);
    options.wait = false;
    const auto greedy = run_gather_model(options);
    outcome.merged_min = std::min(outcome.merged_min, waiting.merged_share);
    outcome.throughput_min =
        std::min(outcome.throughput_min, waiting.layers_per_second / greedy.layers_per_second);
    EXPECT_GT(waiting.answered + 64,
              waiting.dispatches);  // GATHER-1: what is not in flight is answered.
  }
  return outcome;
}

TEST(GatherModel, EquallyLoadedNodesComeIntoStep) {
  for (uint32_t nodes = 2; nodes <= 4; ++nodes) {
    for (uint32_t micro_batches = 1; micro_batches <= 4; ++micro_batches) {
      for (uint32_t layers : {4u, 16u, 32u}) {
        SCOPED_TRACE(::testing::Message()
                     << nodes << " nodes, m = " << micro_batches << ", " << layers << " layers");
        const Outcome outcome =
            compare({.attention_nodes = nodes, .micro_batches = micro_batches, .layers = layers});
        EXPECT_GE(outcome.merged_min, 0.9);
        // Two nodes with m = 1 interleave by chance as well as one node with m = 2 does on purpose:
        // in step, each layer takes the slower of two jittered times instead.
        EXPECT_GE(outcome.throughput_min, micro_batches == 1 ? 0.96 : 0.98);
      }
    }
  }
}

TEST(GatherModel, SeveralExpertNodesDoNotHoldAgainstEachOther) {
  for (uint32_t experts : {2u, 3u}) {
    for (uint32_t micro_batches = 1; micro_batches <= 3; ++micro_batches) {
      SCOPED_TRACE(::testing::Message() << experts << " expert nodes, m = " << micro_batches);
      const Outcome outcome =
          compare({.attention_nodes = 3, .expert_nodes = experts, .micro_batches = micro_batches});
      EXPECT_GE(outcome.merged_min, 0.9);
      EXPECT_GE(outcome.throughput_min, 0.98);
    }
  }
}

TEST(GatherModel, UnequalNodesDoNotPay) {
  for (double slowness : {1.2, 1.5, 3.0}) {
    for (Nanos expert : {20 * kMicrosecond, 100 * kMicrosecond}) {
      for (uint32_t micro_batches = 1; micro_batches <= 3; ++micro_batches) {
        SCOPED_TRACE(::testing::Message() << "one node slower by " << slowness << ", T_e " << expert
                                          << " ns, m = " << micro_batches);
        const Outcome outcome = compare(
            {.micro_batches = micro_batches, .expert_base = expert, .slowness = {1.0, slowness}});
        EXPECT_GE(outcome.throughput_min, micro_batches == 1 ? 0.95 : 0.97);
      }
    }
  }
}

TEST(GatherModel, BurstsDoNotPay) {
  for (uint32_t nodes : {2u, 3u}) {
    for (Nanos expert : {20 * kMicrosecond, 100 * kMicrosecond}) {
      for (uint32_t micro_batches = 1; micro_batches <= 3; ++micro_batches) {
        SCOPED_TRACE(::testing::Message()
                     << nodes << " nodes, T_e " << expert << " ns, m = " << micro_batches);
        const Outcome outcome = compare({.attention_nodes = nodes,
                                         .micro_batches = micro_batches,
                                         .expert_base = expert,
                                         .burst_steps = 3,
                                         .pause = 5 * kMillisecond});
        EXPECT_GE(outcome.throughput_min, 0.97);
      }
    }
  }
}

TEST(GatherModel, ComputeBoundExpertsAreNotWaitedFor) {
  for (uint32_t micro_batches = 1; micro_batches <= 3; ++micro_batches) {
    const Outcome outcome = compare(
        {.micro_batches = micro_batches, .expert_base = 5 * kMicrosecond, .expert_row = 1'500});
    EXPECT_GE(outcome.throughput_min, 0.98) << "m = " << micro_batches;
  }
}

TEST(GatherModel, PingPongOfOneNodeSurvives) {
  GatherModelOptions options{.attention_nodes = 1, .micro_batches = 1, .head = 0};
  const double one = run_gather_model(options).layers_per_second;
  options.micro_batches = 2;
  const auto two = run_gather_model(options);
  EXPECT_GE(two.layers_per_second / one, 1.75);
  EXPECT_EQ(two.waited_share, 0);
  // And with a second node beside it, merged or not.
  options.attention_nodes = 2;
  EXPECT_GE(run_gather_model(options).layers_per_second / one, 2 * 1.75);
}

TEST(GatherModel, NoDispatchWaitsLongerThanAStep) {
  for (uint32_t micro_batches = 1; micro_batches <= 4; ++micro_batches) {
    const auto result = run_gather_model({.attention_nodes = 3, .micro_batches = micro_batches});
    // A step is 16 layers of at least T_a + T_e.
    EXPECT_LT(result.longest_wait, 16 * 200 * kMicrosecond * 2);
  }
}

// GATHER-1 under arbitrary events: links come and go, runs are long, slots repeat and skip layers.
TEST(Gather, EveryDispatchRunsOnce) {
  for (uint64_t seed = 0; seed < 1'000; ++seed) {
    SCOPED_TRACE("reproduce with seed=" + std::to_string(seed));
    SplitMix64 random(seed);
    GatherPolicy policy({.layers = 5, .rows_max = 20});
    std::map<std::pair<uint32_t, uint32_t>, PendingDispatch> waiting;  // By link and slot.
    std::map<uint32_t, bool> open;
    std::vector<PendingDispatch> run;
    Nanos now = 0, run_began = 0;
    uint32_t next_link = 0;
    for (int event = 0; event < 400; ++event) {
      now += static_cast<Nanos>(random.below(40 * kMicrosecond));
      if (open.empty() || random.chance(0.02)) {
        policy.on_link_opened(LinkId{next_link}, 2);
        open[next_link++] = true;
      }
      if (random.chance(0.01)) {
        const uint32_t link =
            std::next(open.begin(), static_cast<long>(random.below(open.size())))->first;
        policy.on_link_closed(LinkId{link});
        open.erase(link);
        std::erase_if(waiting, [&](const auto& item) { return item.first.first == link; });
        std::erase_if(run, [&](const auto& item) { return item.link.value == link; });
        continue;
      }
      const uint32_t link =
          std::next(open.begin(), static_cast<long>(random.below(open.size())))->first;
      const uint32_t slot = static_cast<uint32_t>(random.below(4));
      const bool in_run = std::any_of(run.begin(), run.end(), [&](const auto& item) {
        return item.link.value == link && item.slot == slot;
      });
      if (!in_run && !waiting.contains({link, slot})) {
        const auto fresh = dispatch(link, slot, static_cast<uint32_t>(random.below(5)), now,
                                    static_cast<uint32_t>(random.below(9)));
        waiting[{link, slot}] = fresh;
        policy.on_dispatch(fresh);
      }
      if (run_began != 0) {
        if (random.chance(0.5)) continue;
        policy.on_answered(now, now - run_began);
        run.clear();
        run_began = 0;
      }
      const GatherDecision decision = policy.decide(now);
      if (decision.kind == Kind::kIdle) {
        ASSERT_TRUE(waiting.empty());
      } else if (decision.kind == Kind::kWait) {
        ASSERT_GT(decision.wait_until, now);
        ASSERT_LE(decision.wait_until, now + 10 * kMillisecond);
      } else {
        ASSERT_FALSE(decision.dispatches.empty());
        for (const PendingDispatch& each : decision.dispatches) {
          ASSERT_EQ(each.layer, decision.layer);
          ASSERT_EQ(waiting.erase({each.link.value, each.slot}), 1u);
        }
        run.assign(decision.dispatches.begin(), decision.dispatches.end());
        run_began = now;
      }
    }
    // Nothing new: all that waits runs, each decision within its wait.
    if (run_began != 0) policy.on_answered(now, 1);
    while (!waiting.empty()) {
      const GatherDecision decision = policy.decide(now);
      ASSERT_NE(decision.kind, Kind::kIdle);
      if (decision.kind == Kind::kWait) {
        now = decision.wait_until;
        continue;
      }
      for (const PendingDispatch& each : decision.dispatches) {
        ASSERT_EQ(waiting.erase({each.link.value, each.slot}), 1u);
      }
      policy.on_answered(now, 1);
    }
    ASSERT_EQ(policy.decide(now).kind, Kind::kIdle);
  }
}

TEST(Gather, SameEventsSameDecisions) {
  GatherModelOptions options{.attention_nodes = 4, .micro_batches = 3, .seed = 7};
  const auto first = run_gather_model(options);
  const auto second = run_gather_model(options);
  EXPECT_EQ(first.dispatches, second.dispatches);
  EXPECT_EQ(first.merged_share, second.merged_share);
  EXPECT_EQ(first.longest_wait, second.longest_wait);
}

}  // namespace
}  // namespace volley::scheduler
