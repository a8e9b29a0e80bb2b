// Goal: LINK-1..4 hold between the two ends of one link, whatever is announced twice, late or out
// of order. Method: DispatchLink and AnswerLink with a wire between them, thousands of seeds; and
// the same with bugs planted in the wiring, which must be caught.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "sim/checkers/links.h"
#include "volley/base/random.h"
#include "volley/protocol/link.h"

namespace volley::sim {
namespace {

using protocol::AnswerLink;
using protocol::DispatchLink;

enum class Wiring : uint8_t {
  kSound,
  kForgetsAnswer,
  kComputesDuplicates,
  kForgetsLost,
  kTakesStale
};

class LinkSim {
 public:
  LinkSim(uint64_t seed, Wiring wiring)
      : random_(seed), wiring_(wiring), slots_(2 + 2 * static_cast<uint32_t>(random_.below(3))) {}

  std::string run() {
    for (uint32_t link = 1; link <= 3; ++link) run_link(link);
    checker_.at_rest();
    return violations_.text();
  }

 private:
  struct Message {
    bool dispatch = true;
    uint32_t slot = 0;
    uint64_t sequence = 0;
  };

  bool planted(Wiring wiring) { return wiring_ == wiring && random_.chance(0.05); }

  /// One link from its opening until it failed, or until all is answered.
  void run_link(uint32_t link) {
    link_ = link;
    DispatchLink sender(slots_);
    AnswerLink receiver(slots_);
    std::vector<Message> wire, announced, queue;
    std::vector<uint64_t> posted(slots_, 0);
    const bool fails = random_.chance(0.5);
    const uint64_t turns = 50 + random_.below(150);
    for (uint64_t turn = 0; turn < turns || (!fails && !(wire.empty() && queue.empty())); ++turn) {
      const auto slot = static_cast<uint32_t>(random_.below(slots_));
      if (turn < turns && sender.slot_free(slot)) {
        posted[slot] = sender.post(slot);
        checker_.posted(link, slot, posted[slot]);
        wire.push_back({.dispatch = true, .slot = slot, .sequence = posted[slot]});
      }
      if (turn < turns && !announced.empty() && random_.chance(0.1)) {
        wire.push_back(announced[random_.below(announced.size())]);
      }
      if (!wire.empty() && random_.chance(0.7)) {
        const size_t pick = random_.below(wire.size());
        const Message message = wire[pick];
        wire.erase(wire.begin() + static_cast<std::ptrdiff_t>(pick));
        announced.push_back(message);
        if (message.dispatch) {
          arrive_dispatch(receiver, message, queue, wire);
        } else {
          arrive_answer(sender, message, posted);
        }
      }
      if (!queue.empty() && random_.chance(0.5)) {
        const Message done = queue.front();
        queue.erase(queue.begin());
        receiver.on_answered(done.slot);
        if (!planted(Wiring::kForgetsAnswer)) {
          wire.push_back({.dispatch = false, .slot = done.slot, .sequence = done.sequence});
        }
      }
      ASSERT_LE(sender.outstanding_count(), slots_);
    }
    if (!fails) return;
    std::vector<uint32_t> lost;
    sender.fail(lost);
    if (!lost.empty() && planted(Wiring::kForgetsLost)) return;
    checker_.closed(link);
    ASSERT_EQ(sender.outstanding_count(), 0u);
  }

  void arrive_dispatch(AnswerLink& receiver, const Message& message, std::vector<Message>& queue,
                       std::vector<Message>& wire) {
    switch (receiver.on_dispatch(message.slot, message.sequence)) {
      case AnswerLink::Dispatch::kCompute:
        checker_.computed(link_, message.slot, message.sequence);
        queue.push_back(message);
        return;
      case AnswerLink::Dispatch::kRepeat:
        if (planted(Wiring::kComputesDuplicates)) {
          checker_.computed(link_, message.slot, message.sequence);
        }
        wire.push_back({.dispatch = false, .slot = message.slot, .sequence = message.sequence});
        return;
      case AnswerLink::Dispatch::kViolation:
        violations_.add("LINK-2", "slot {}: {} came before the last one was answered", message.slot,
                        message.sequence);
        return;
      case AnswerLink::Dispatch::kDuplicate:
      case AnswerLink::Dispatch::kStale:
        return;
    }
  }

  void arrive_answer(DispatchLink& sender, const Message& message,
                     const std::vector<uint64_t>& posted) {
    const uint64_t truth = message.sequence;
    const uint64_t claimed = planted(Wiring::kTakesStale) ? posted[message.slot] : truth;
    const bool expected = sender.expects(message.slot, claimed);
    const bool accepted =
        sender.on_answer(message.slot, claimed) == DispatchLink::Answer::kAccepted;
    if (accepted != expected) violations_.add("LINK-3", "expects() and on_answer() disagree");
    if (accepted) checker_.answered(link_, message.slot, claimed, truth);
  }

  SplitMix64 random_;
  Wiring wiring_;
  uint32_t slots_;
  uint32_t link_ = 0;
  Violations violations_;
  LinkChecker checker_{violations_};
};

TEST(LinkSim, EveryDispatchEndsOnce) {
  for (uint64_t seed = 0; seed < 3'000; ++seed) {
    ASSERT_EQ(LinkSim(seed, Wiring::kSound).run(), "") << "reproduce with seed=" << seed;
  }
}

TEST(LinkSim, PlantedBugsAreCaught) {
  const std::pair<Wiring, const char*> bugs[] = {{Wiring::kForgetsAnswer, "LINK-1"},
                                                 {Wiring::kComputesDuplicates, "LINK-4"},
                                                 {Wiring::kForgetsLost, "LINK-1"},
                                                 {Wiring::kTakesStale, "LINK-3"}};
  for (const auto& [wiring, id] : bugs) {
    bool caught = false;
    for (uint64_t seed = 0; seed < 300 && !caught; ++seed) {
      caught = LinkSim(seed, wiring).run().find(id) != std::string::npos;
    }
    EXPECT_TRUE(caught) << id;
  }
}

}  // namespace
}  // namespace volley::sim
