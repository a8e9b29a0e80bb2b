// Goal: the fault decorator does each thing that its policy names, and nothing else.
// Method: one fault at a time over `local`; the partner is a bare node.

#include <array>
#include <atomic>
#include <map>

#include "fabric_pair.h"

namespace volley::transport {
namespace {

class FaultFabricTest : public ::testing::Test {
 protected:
  void open(const FaultPolicy& policy) {
    attention = {.options = node_options("attention-0"), .fabric = nullptr, .events = {}};
    expert = {.options = node_options("expert-0", "auto"), .fabric = nullptr, .events = {}};
    expert.fabric = std::move(make_fabric("local", expert.options)).value();
    auto faulty =
        make_fault_fabric(std::move(make_fabric("local", attention.options)).value(), policy);
    faults = faulty.get();
    attention.fabric = std::move(faulty);
    link();
  }
  void link() {
    to_expert = attention.fabric->connect(expert.fabric->address(), kKey).value();
    pump_for({&attention, &expert}, attention, EventKind::kOpened);
    to_attention = pump_for({&attention, &expert}, expert, EventKind::kOpened).link;
  }
  void dispatch(uint32_t slot) {
    fill(attention.fabric->send_slot(to_expert, slot), attention.options.geometry.dispatch,
         make_header(attention, to_expert, slot, true, ++sequence, 2, 3));
    attention.fabric->post(to_expert, slot);
  }
  void answer(uint32_t slot) {
    fill(expert.fabric->send_slot(to_attention, slot), expert.options.geometry.answer,
         make_header(expert, to_attention, slot, false, sequence, 3, 0));
    expert.fabric->post(to_attention, slot);
  }
  void settle() {
    int turns = 0;
    pump({&attention, &expert}, [&] { return ++turns > 50; });
  }

  Node attention, expert;
  FaultFabric* faults = nullptr;
  LinkId to_expert, to_attention;
  uint64_t sequence = 0;
};

TEST_F(FaultFabricTest, WithoutAPolicyNothingHappens) {
  open({});
  for (int i = 0; i < 100; ++i) {
    dispatch(0);
    pump_for({&attention, &expert}, expert, EventKind::kMessage);
    answer(0);
    pump_for({&attention, &expert}, attention, EventKind::kMessage);
  }
  settle();
  EXPECT_TRUE(attention.events.empty());
  EXPECT_TRUE(expert.events.empty());
}

TEST_F(FaultFabricTest, DelaysAreKeptAndWaitWakesForThem) {
  open({.delay_min = 3 * kMillisecond, .delay_max = 4 * kMillisecond});
  dispatch(0);
  pump_for({&expert}, expert, EventKind::kMessage);
  const Nanos start = monotonic_now();
  answer(0);
  attention.poll();
  EXPECT_TRUE(attention.events.empty());
  attention.fabric->wait(start + kSecond);
  attention.poll();
  ASSERT_EQ(attention.events.size(), 1u);
  EXPECT_GE(monotonic_now() - start, 3 * kMillisecond);
  EXPECT_LT(monotonic_now() - start, 500 * kMillisecond);
}

TEST_F(FaultFabricTest, AWiresDelayCountsFromThePost) {
  std::array<std::atomic<Nanos>, 8> here{}, there{};
  constexpr Nanos kDelay = kSecond;
  open({.delay_min = kDelay, .delay_max = kDelay, .posted_here = here, .posted_there = there});
  const Nanos start = monotonic_now();
  dispatch(0);
  dispatch(1);
  EXPECT_GE(here[0].load(), start);
  EXPECT_LE(here[0].load(), here[1].load());
  EXPECT_LE(here[1].load(), monotonic_now());
  ASSERT_TRUE(pump({&expert}, [&] { return expert.events.size() == 2; }));

  // As if slot 1's answer had been under way for as long as the wire takes, and slot 0's not.
  there[0] = monotonic_now() + kSecond;
  there[1] = monotonic_now() - kDelay;
  answer(0);
  answer(1);
  settle();
  ASSERT_EQ(attention.events.size(), 1u);
  EXPECT_EQ(attention.events.front().slot, 1u);
}

TEST_F(FaultFabricTest, DelaysChangeTheOrderOfSlots) {
  open({.delay_max = 500 * kMicrosecond});
  bool overtaken = false;
  for (int round = 0; round < 20; ++round) {
    for (uint32_t slot = 0; slot < 6; ++slot) dispatch(slot);
    EXPECT_TRUE(pump({&expert}, [&] { return expert.events.size() == 6; }));
    expert.events.clear();
    for (uint32_t slot = 0; slot < 6; ++slot) answer(slot);
    EXPECT_TRUE(pump({&attention}, [&] { return attention.events.size() == 6; }));
    for (uint32_t i = 0; i < 6; ++i) overtaken |= attention.events[i].slot != i;
    attention.events.clear();
  }
  EXPECT_TRUE(overtaken);
}

TEST_F(FaultFabricTest, DuplicatesComeDirectlyAfterTheFirst) {
  open({.duplicate_probability = 1});
  dispatch(1);
  pump_for({&attention, &expert}, expert, EventKind::kMessage);
  answer(1);
  ASSERT_TRUE(pump({&attention}, [&] { return attention.events.size() == 2; }));
  for (const FabricEvent& event : attention.events) {
    EXPECT_EQ(event.kind, EventKind::kMessage);
    EXPECT_EQ(event.slot, 1u);
  }
}

TEST_F(FaultFabricTest, AFailedLinkIsClosedAtBothEnds) {
  open({});
  faults->fail_link(to_expert);
  std::byte* slot = attention.fabric->send_slot(to_expert, 0);
  slot[0] = std::byte{1};  // The engine does not know yet.
  attention.fabric->post(to_expert, 0);
  const FabricEvent closed = pump_for({&attention}, attention, EventKind::kClosed);
  EXPECT_EQ(closed.link, to_expert);
  EXPECT_EQ(closed.code, StatusCode::kUnavailable);
  EXPECT_NE(attention.fabric->close_reason(to_expert).find("fault"), std::string::npos);
  pump_for({&attention, &expert}, expert, EventKind::kClosed);
  EXPECT_TRUE(expert.events.empty());
  link();
  dispatch(0);
  pump_for({&attention, &expert}, expert, EventKind::kMessage);
}

TEST_F(FaultFabricTest, OfTheMessagesOfAFailingLinkSomeLandAndSomeDoNot) {
  std::map<size_t, int> outgoing_landed, incoming_landed;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    sequence = 0;
    open({.seed = seed, .link_failure_probability = 1});
    dispatch(0);
    dispatch(1);  // After the failure: never lands.
    pump_for({&attention, &expert}, expert, EventKind::kClosed);
    ++outgoing_landed[expert.events.size()];

    open({.seed = seed, .delay_min = kMillisecond, .delay_max = 2 * kMillisecond});
    for (uint32_t slot = 0; slot < 4; ++slot) dispatch(slot);
    EXPECT_TRUE(pump({&expert}, [&] { return expert.events.size() == 4; }));
    for (uint32_t slot = 0; slot < 4; ++slot) answer(slot);
    attention.poll();
    faults->fail_link(to_expert);
    pump_for({&attention}, attention, EventKind::kClosed);
    ++incoming_landed[attention.events.size()];
  }
  EXPECT_EQ(outgoing_landed.size(), 2u);
  EXPECT_GT(outgoing_landed[0], 0);
  EXPECT_GT(outgoing_landed[1], 0);
  EXPECT_GT(incoming_landed.size(), 2u);
}

TEST_F(FaultFabricTest, AnOutboundPartitionSwallowsWhatIsPosted) {
  open({});
  faults->partition(to_expert, false, true);
  dispatch(0);
  settle();
  EXPECT_TRUE(expert.events.empty());
  faults->partition(to_expert, false, false);
  dispatch(1);
  EXPECT_EQ(pump_for({&attention, &expert}, expert, EventKind::kMessage).slot, 1u);
}

TEST_F(FaultFabricTest, AnInboundPartitionSwallowsMessagesAndSilencesHeartbeats) {
  open({});
  dispatch(0);
  pump_for({&attention, &expert}, expert, EventKind::kMessage);
  faults->partition(to_expert, true, false);
  const Nanos heard = attention.fabric->last_heard(to_expert);
  answer(0);
  expert.fabric->pulse();
  settle();
  EXPECT_TRUE(attention.events.empty());
  EXPECT_EQ(attention.fabric->last_heard(to_expert), heard);
  dispatch(1);  // The other direction works.
  pump_for({&attention, &expert}, expert, EventKind::kMessage);
  faults->partition(to_expert, false, false);
  expert.fabric->pulse();
  settle();
  EXPECT_GT(attention.fabric->last_heard(to_expert), heard);
}

TEST_F(FaultFabricTest, AnInnerCloseTakesItsHeldMessagesAlong) {
  open({.delay_min = 20 * kMillisecond, .delay_max = 20 * kMillisecond});
  dispatch(0);
  pump_for({&expert}, expert, EventKind::kMessage);
  answer(0);
  attention.poll();
  expert.fabric.reset();
  pump_for({&attention}, attention, EventKind::kClosed);
  attention.events.clear();
  const Nanos end = monotonic_now() + 30 * kMillisecond;
  while (monotonic_now() < end) {
    attention.fabric->wait(end);
    attention.poll();
  }
  EXPECT_TRUE(attention.events.empty()) << "a message after kClosed";
}

}  // namespace
}  // namespace volley::transport
