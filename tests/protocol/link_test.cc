// Goal: both ends of a link keep LINK-1 to LINK-4: one dispatch per slot, each ends exactly once,
// stale answers change nothing, a dispatch is computed at most once at a time. Method: the named
// cases one by one, then seeded random traffic between the two ends with duplicates, delays and
// failures, counting how every dispatch ends.

#include "volley/protocol/link.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "volley/base/random.h"

namespace volley::protocol {
namespace {

TEST(DispatchLink, SequencesAscendOverAllSlots) {
  DispatchLink link(3);
  EXPECT_EQ(link.post(2), 1u);
  EXPECT_EQ(link.post(0), 2u);
  EXPECT_FALSE(link.slot_free(0));
  EXPECT_TRUE(link.slot_free(1));
  EXPECT_EQ(link.outstanding_count(), 2u);
}

TEST(DispatchLink, DropsStaleAnswers) {
  DispatchLink link(2);
  const uint64_t first = link.post(0);
  EXPECT_EQ(link.on_answer(0, first), DispatchLink::Answer::kAccepted);
  EXPECT_EQ(link.on_answer(0, first), DispatchLink::Answer::kStale);
  const uint64_t second = link.post(0);
  EXPECT_EQ(link.on_answer(0, first), DispatchLink::Answer::kStale);
  EXPECT_EQ(link.on_answer(1, second), DispatchLink::Answer::kStale);
  EXPECT_EQ(link.on_answer(0, second + 1), DispatchLink::Answer::kStale);
  EXPECT_FALSE(link.slot_free(0));
  EXPECT_TRUE(link.expects(0, second));
  EXPECT_FALSE(link.expects(1, 0));
  EXPECT_FALSE(link.expects(7, second));
}

TEST(DispatchLink, FailureNamesLostSlots) {
  DispatchLink link(4);
  link.post(3);
  link.post(1);
  const uint64_t answered = link.post(0);
  ASSERT_EQ(link.on_answer(0, answered), DispatchLink::Answer::kAccepted);
  std::vector<uint32_t> lost = {99};
  link.fail(lost);
  EXPECT_EQ(lost, (std::vector<uint32_t>{1, 3}));
  EXPECT_EQ(link.outstanding_count(), 0u);
}

TEST(DispatchLinkDeathTest, PostingToABusySlotIsABug) {
  DispatchLink link(1);
  link.post(0);
  EXPECT_DEATH(link.post(0), "check failed");
}

TEST(AnswerLink, TellsNewFromKnown) {
  using Dispatch = AnswerLink::Dispatch;
  AnswerLink link(2);
  EXPECT_EQ(link.on_dispatch(0, 0), Dispatch::kStale);
  EXPECT_EQ(link.on_dispatch(0, 5), Dispatch::kCompute);
  EXPECT_EQ(link.on_dispatch(0, 5), Dispatch::kDuplicate);
  EXPECT_EQ(link.on_dispatch(0, 4), Dispatch::kStale);
  EXPECT_EQ(link.on_dispatch(0, 6), Dispatch::kViolation);
  EXPECT_EQ(link.on_dispatch(1, 6), Dispatch::kCompute);
  link.on_answered(0);
  EXPECT_EQ(link.on_dispatch(0, 5), Dispatch::kRepeat);
  EXPECT_EQ(link.on_dispatch(0, 5), Dispatch::kRepeat);
  EXPECT_EQ(link.on_dispatch(0, 7), Dispatch::kCompute);
  EXPECT_EQ(link.on_dispatch(0, 5), Dispatch::kStale);
}

struct Wire {
  uint32_t slot;
  uint64_t sequence;
};

/// One seed of traffic; every dispatch must end once, whatever is delivered twice or late.
void run_link(uint64_t seed) {
  SplitMix64 random(seed);
  const uint32_t slot_count = 1 + static_cast<uint32_t>(random.below(4));
  DispatchLink sender(slot_count);
  AnswerLink receiver(slot_count);
  std::vector<Wire> to_receiver, to_sender, computing;
  std::map<uint64_t, int> ends;
  std::vector<uint32_t> lost;
  const auto pick = [&](std::vector<Wire>& list) {
    const size_t index = random.below(list.size());
    const Wire wire = list[index];
    if (!random.chance(0.2)) list.erase(list.begin() + static_cast<ptrdiff_t>(index));
    return wire;
  };
  for (int turn = 0; turn < 200; ++turn) {
    const uint32_t slot = static_cast<uint32_t>(random.below(slot_count));
    switch (random.below(4)) {
      case 0:
        if (sender.slot_free(slot)) {
          const uint64_t sequence = sender.post(slot);
          ends[sequence] = 0;
          to_receiver.push_back({slot, sequence});
        }
        break;
      case 1:
        if (!to_receiver.empty()) {
          const Wire wire = pick(to_receiver);
          const auto what = receiver.on_dispatch(wire.slot, wire.sequence);
          ASSERT_NE(what, AnswerLink::Dispatch::kViolation);
          if (what == AnswerLink::Dispatch::kRepeat) to_sender.push_back(wire);
          if (what == AnswerLink::Dispatch::kCompute) {
            for (const Wire& other : computing) ASSERT_NE(other.slot, wire.slot);
            computing.push_back(wire);
          }
        }
        break;
      case 2:
        if (!computing.empty()) {
          to_sender.push_back(computing.back());
          receiver.on_answered(computing.back().slot);
          computing.pop_back();
        }
        break;
      default:
        if (!to_sender.empty()) {
          const Wire wire = pick(to_sender);
          if (sender.on_answer(wire.slot, wire.sequence) == DispatchLink::Answer::kAccepted) {
            ++ends[wire.sequence];
          }
        }
    }
  }
  uint32_t open = 0;
  for (const auto& [sequence, count] : ends) {
    ASSERT_LE(count, 1) << "LINK-1, sequence " << sequence;
    open += count == 0 ? 1u : 0u;
  }
  sender.fail(lost);
  ASSERT_EQ(lost.size(), open) << "LINK-1";
}

TEST(LinkRandom, EveryDispatchEndsOnce) {
  for (uint64_t seed = 0; seed < 2'000; ++seed) {
    SCOPED_TRACE("reproduce with seed=" + std::to_string(seed));
    run_link(seed);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace volley::protocol
