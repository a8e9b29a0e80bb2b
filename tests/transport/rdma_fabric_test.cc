// Goal: what only `rdma` can get wrong: messages spread over rails, full send queues, broken queue
// pairs, devices and wires, and the shared queues after many links. Method: nodes driven by the
// test's thread over verbs in memory, which fail when told; content is compared by digest. The
// contract that all backends share is in fabric_conformance_test.

#include "volley/transport/rdma_fabric.h"

#include <map>
#include <utility>

#include "fabric_pair.h"
#include "rdma/fake_verbs.h"

namespace volley::transport {
namespace {

using protocol::MessageHeader;

rdma::Gid gid_of(uint8_t node, uint8_t port = 0) {
  return {0xfd, node, port};
}

class RdmaFabricTest : public ::testing::Test {
 protected:
  Result<std::unique_ptr<Fabric>> try_make(const FabricOptions& options, uint8_t node,
                                           uint8_t port_count = 1,
                                           rdma::FakeDeviceOptions device = {}) {
    std::vector<std::shared_ptr<rdma::Device>> ports;
    for (uint8_t port = 0; port < port_count; ++port) {
      device.gid = gid_of(node, port);
      ports.push_back(network.open(device));
    }
    devices[node] = ports[0];
    return make_rdma_fabric(options, std::move(ports));
  }
  Node make(const FabricOptions& options, uint8_t node, uint8_t port_count = 1) {
    auto fabric = try_make(options, node, port_count);
    EXPECT_TRUE(fabric.ok()) << fabric.status();
    return {.options = options, .fabric = std::move(fabric).value(), .events = {}};
  }
  static FabricOptions attention_options() { return node_options("attention-0"); }
  static FabricOptions expert_options() { return node_options("expert-0", "127.0.0.1:0"); }

  void open(const FabricOptions& a, const FabricOptions& e, uint8_t port_count = 1) {
    attention = make(a, 0, port_count);
    expert = make(e, 1, port_count);
    link();
  }
  void link() {
    const auto id = attention.fabric->connect(expert.fabric->address(), kKey);
    ASSERT_TRUE(id.ok()) << id.status();
    to_expert = *id;
    pump_for({&attention, &expert}, attention, EventKind::kOpened);
    to_attention = pump_for({&attention, &expert}, expert, EventKind::kOpened).link;
  }

  void send(Node& from, LinkId id, const MessageHeader& header) {
    const auto& geometry = from.options.geometry;
    const bool dispatch = header.kind == protocol::MessageKind::kDispatch;
    fill(from.fabric->send_slot(id, header.slot), dispatch ? geometry.dispatch : geometry.answer,
         header);
    from.fabric->post(id, header.slot);
  }
  // A dispatch and its answer on one slot, both compared.
  void exchange(uint32_t slot, uint64_t sequence, uint32_t rows, uint32_t entries) {
    const auto& geometry = attention.options.geometry;
    const MessageHeader dispatch =
        make_header(attention, to_expert, slot, true, sequence, rows, entries);
    send(attention, to_expert, dispatch);
    FabricEvent event = pump_for({&attention, &expert}, expert, EventKind::kMessage);
    EXPECT_EQ(event.slot, slot);
    EXPECT_EQ(digest(expert.fabric->recv_slot(to_attention, slot), geometry.dispatch, dispatch),
              expected_digest(geometry.dispatch, dispatch));
    const MessageHeader answer =
        make_header(expert, to_attention, slot, false, sequence, entries, 0);
    send(expert, to_attention, answer);
    event = pump_for({&attention, &expert}, attention, EventKind::kMessage);
    EXPECT_EQ(digest(attention.fabric->recv_slot(to_expert, slot), geometry.answer, answer),
              expected_digest(geometry.answer, answer));
  }
  StatusCode closed(Node& node) {
    return pump_for({&attention, &expert}, node, EventKind::kClosed).code;
  }

  rdma::FakeNetwork network;
  std::map<uint8_t, std::shared_ptr<rdma::Device>> devices;  // The first port of each node.
  Node attention, expert;
  LinkId to_expert, to_attention;
};

TEST_F(RdmaFabricTest, LargeMessagesAreSpreadOverRailsOfSeveralPorts) {
  FabricOptions a = attention_options(), e = expert_options();
  // 1 MiB of rows, so that all six rails get a part, at sizes that do not divide evenly.
  a.geometry = e.geometry = protocol::LinkGeometry::make(2, 257, 2, 4096 - 2);
  a.rdma.queue_pairs = e.rdma.queue_pairs = 2;
  open(a, e, 3);
  uint64_t sequence = 0;
  for (const uint32_t rows : {1u, 16u, 17u, 33u, 100u, 256u, 257u}) {
    for (uint32_t slot = 0; slot < 4; ++slot) exchange(slot, ++sequence, rows, rows);
  }
  exchange(0, 0xfffff, 257, 514);  // The immediate holds the low 20 bits of the number.
  exchange(0, 0x100000, 257, 514);
}

TEST_F(RdmaFabricTest, EndsWithDifferentRailsRefuseEachOther) {
  FabricOptions a = attention_options();
  a.rdma.queue_pairs = 2;
  attention = make(a, 0);
  expert = make(expert_options(), 1);
  const auto id = attention.fabric->connect(expert.fabric->address(), kKey);
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(closed(attention), StatusCode::kFailedPrecondition);
  EXPECT_NE(attention.fabric->close_reason(*id).find("rails are 2"), std::string::npos)
      << attention.fabric->close_reason(*id);
  EXPECT_TRUE(expert.events.empty());
}

TEST_F(RdmaFabricTest, RefusesRailsAndDepthsThatCannotBe) {
  FabricOptions options = attention_options();
  options.rdma.queue_pairs = 3;
  EXPECT_EQ(try_make(options, 0, 3).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(make_rdma_fabric(options, {}).status().code(), StatusCode::kInvalidArgument);
  rdma::FakeDeviceOptions small;
  small.name = "small_0";
  small.completion_depth_max = 64;
  const auto fabric = try_make(attention_options(), 0, 1, small);
  EXPECT_EQ(fabric.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(message_of(fabric.status()).find("small_0"), std::string::npos) << fabric.status();
}

// The process is there, its card is not: nothing but the queue pairs can tell.
TEST_F(RdmaFabricTest, AMessageToADeadCardEndsTheLink) {
  open(attention_options(), expert_options());
  exchange(0, 1, 5, 10);
  network.kill(*devices[1]);
  send(attention, to_expert, make_header(attention, to_expert, 0, true, 2, 5, 10));
  const FabricEvent event = pump_for({&attention}, attention, EventKind::kClosed);
  EXPECT_EQ(event.code, StatusCode::kUnavailable);
  EXPECT_NE(attention.fabric->close_reason(to_expert).find("no acknowledgement"), std::string::npos)
      << attention.fabric->close_reason(to_expert);
}

TEST_F(RdmaFabricTest, APulseOverADeadWireEndsAnIdleLink) {
  open(attention_options(), expert_options());
  exchange(0, 1, 5, 10);
  network.partition(gid_of(0), gid_of(1), true);
  FabricEvent event;
  EXPECT_TRUE(pump({&attention}, [&] {
    attention.fabric->pulse();
    return attention.take(EventKind::kClosed, event);
  }));
  EXPECT_EQ(event.code, StatusCode::kUnavailable);
  EXPECT_EQ(closed(expert), StatusCode::kUnavailable);  // It is told over the rendezvous.
  network.partition(gid_of(0), gid_of(1), false);
  link();
  exchange(0, 2, 5, 10);
}

TEST_F(RdmaFabricTest, ABrokenDeviceEndsAllItsLinks) {
  open(attention_options(), expert_options());
  const LinkId first = to_expert;
  link();
  network.break_device(*devices[0]);
  EXPECT_EQ(closed(attention), StatusCode::kUnavailable);
  EXPECT_EQ(closed(attention), StatusCode::kUnavailable);
  EXPECT_NE(first, to_expert);
  EXPECT_EQ(closed(expert), StatusCode::kUnavailable);
  EXPECT_EQ(closed(expert), StatusCode::kUnavailable);
}

// Completions that come late leave no room in the send queues: messages wait, and all arrive.
TEST_F(RdmaFabricTest, MessagesWaitForRoomInTheSendQueue) {
  network.set_faults({.drop_rate = 0.05, .completion_delay_max = 400});
  open(attention_options(), expert_options());
  uint64_t sequence = 0;
  for (int round = 0; round < 60; ++round) {
    std::map<uint32_t, MessageHeader> sent;
    for (uint32_t slot = 0; slot < 6; ++slot) {
      sent[slot] = make_header(attention, to_expert, slot, true, ++sequence, 5, 10);
      send(attention, to_expert, sent[slot]);
    }
    for (int i = 0; i < 6; ++i) {
      const FabricEvent event = pump_for({&attention, &expert}, expert, EventKind::kMessage);
      const auto& layout = attention.options.geometry.dispatch;
      EXPECT_EQ(
          digest(expert.fabric->recv_slot(to_attention, event.slot), layout, sent[event.slot]),
          expected_digest(layout, sent[event.slot]));
      send(expert, to_attention,
           make_header(expert, to_attention, event.slot, false, sent[event.slot].sequence, 10, 0));
    }
    for (int i = 0; i < 6; ++i) pump_for({&attention, &expert}, attention, EventKind::kMessage);
    if (HasFailure()) return;
  }
}

// Queue pairs that break take shared receives and completions along; what they leave must not run
// out, nor be taken for another link's.
TEST_F(RdmaFabricTest, ManyBrokenLinksLeaveTheSharedQueuesWhole) {
  network.set_faults({.drop_rate = 0.02, .completion_delay_max = 20, .flushed_receive_rate = 0.5});
  open(attention_options(), expert_options());
  SplitMix64 random(3);
  uint64_t sequence = 0;
  for (int life = 0; life < 150; ++life) {
    exchange(static_cast<uint32_t>(random.below(6)), ++sequence, 5, 10);
    // Something is under way when the link ends, from this side or from that one.
    for (uint32_t slot = 0; slot < 6; ++slot) {
      send(attention, to_expert, make_header(attention, to_expert, slot, true, ++sequence, 5, 10));
    }
    if (random.chance(0.5)) {
      attention.fabric->close(to_expert);
      closed(expert);
    } else {
      expert.fabric->close(to_attention);
      closed(attention);
    }
    attention.poll();
    expert.poll();
    attention.events.clear();
    expert.events.clear();
    link();
    if (HasFailure()) return;
  }
}

// Connecting a queue pair blocks while the kernel looks for the peer's hardware address.
class SlowJoinTest : public RdmaFabricTest {
 protected:
  void SetUp() override {
    open(attention_options(), expert_options());
    FabricOptions options = node_options("expert-1", "127.0.0.1:0");
    options.connect_timeout = 200 * kMillisecond;
    other = make(options, 2);
  }
  void TearDown() override {
    network.hold_connects(gid_of(0), false);
    network.hold_connects(gid_of(2), false);
  }
  // Starts a link to the other expert node and stops it where `node` connects its queue pairs.
  LinkId start_and_hold(uint8_t node) {
    network.hold_connects(gid_of(node), true);
    const auto id = attention.fabric->connect(other.fabric->address(), kKey);
    EXPECT_TRUE(id.ok()) << id.status();
    EXPECT_TRUE(pump({&attention, &expert, &other}, [&] { return network.held_connects() == 1; }));
    return *id;
  }
  FabricEvent next(Node& node, EventKind kind) {
    return pump_for({&attention, &expert, &other}, node, kind);
  }
  void exchange_some() {
    for (uint32_t slot = 0; slot < 6; ++slot) exchange(slot, ++sequence_, 3, 4);
  }

  Node other;
  std::vector<Node> late;

 private:
  uint64_t sequence_ = 0;
};

TEST_F(SlowJoinTest, HoldsNobodyUp) {
  for (const uint8_t slow : {2, 0}) {
    const LinkId id = start_and_hold(slow);
    exchange_some();
    EXPECT_TRUE(attention.events.empty());
    network.hold_connects(gid_of(slow), false);
    EXPECT_EQ(next(attention, EventKind::kOpened).link, id);
    const LinkId theirs = next(other, EventKind::kOpened).link;
    attention.fabric->close(id);
    EXPECT_EQ(next(other, EventKind::kClosed).link, theirs);
  }
}

TEST_F(SlowJoinTest, EndsInTimeAtBothEnds) {
  FabricOptions options = attention_options();
  options.connect_timeout = 100 * kMillisecond;
  Node hasty = make(options, 3);
  network.hold_connects(gid_of(2), true);
  ASSERT_TRUE(hasty.fabric->connect(other.fabric->address(), kKey).ok());
  EXPECT_EQ(pump_for({&hasty, &other}, hasty, EventKind::kClosed).code,
            StatusCode::kDeadlineExceeded);
  // Until the listener has looked at the socket, too.
  const Nanos seen = monotonic_now() + 5 * kMillisecond;
  EXPECT_TRUE(pump({&other}, [&] { return monotonic_now() > seen; }));
  network.hold_connects(gid_of(2), false);
  EXPECT_TRUE(pump({&other}, [&] { return network.held_connects() == 0; }));
  // The listener has never told of it, and its place is free: all of them can be taken.
  EXPECT_TRUE(other.events.empty());
  for (uint32_t i = 0; i < other.options.links_max; ++i) {
    hasty = make(attention_options(), static_cast<uint8_t>(4 + i));
    ASSERT_TRUE(hasty.fabric->connect(other.fabric->address(), kKey).ok());
    pump_for({&hasty, &other}, hasty, EventKind::kOpened);
    pump_for({&hasty, &other}, other, EventKind::kOpened);
    late.push_back(std::move(hasty));
  }
}

TEST_F(SlowJoinTest, MayBeClosedMeanwhile) {
  const LinkId first = start_and_hold(0);
  // The listener has opened its end and sees it close.
  next(other, EventKind::kOpened);
  attention.fabric->close(first);
  next(other, EventKind::kClosed);
  exchange_some();
  // Its queue pairs are connected while the next link opens.
  ASSERT_TRUE(attention.fabric->connect(other.fabric->address(), kKey).ok());
  EXPECT_TRUE(pump({&attention, &other}, [&] { return network.held_connects() == 2; }));
  network.hold_connects(gid_of(0), false);
  EXPECT_NE(next(attention, EventKind::kOpened).link, first);
  next(other, EventKind::kOpened);
  exchange_some();
}

TEST_F(SlowJoinTest, FailureOfTheListenerReachesTheCaller) {
  rdma::FakeDeviceOptions device;
  device.link_layer = rdma::LinkLayer::kInfiniBand;
  device.lid = 7;
  auto fabric = try_make(node_options("expert-2", "127.0.0.1:0"), 5, 1, device);
  ASSERT_TRUE(fabric.ok()) << fabric.status();
  Node foreign;
  foreign.fabric = std::move(fabric).value();
  const auto id = attention.fabric->connect(foreign.fabric->address(), kKey);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(pump_for({&attention, &foreign}, attention, EventKind::kClosed).code,
            StatusCode::kFailedPrecondition);
  EXPECT_NE(attention.fabric->close_reason(*id).find("link layer"), std::string::npos)
      << attention.fabric->close_reason(*id);
  EXPECT_TRUE(foreign.events.empty());
}

TEST_F(RdmaFabricTest, RandomFaultsOfTheWireLoseNothing) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    network.set_faults(
        {.drop_rate = 0.05, .completion_delay_max = static_cast<uint32_t>(seed * 7)});
    FabricOptions a = attention_options(), e = expert_options();
    a.rdma.queue_pairs = e.rdma.queue_pairs = static_cast<uint32_t>(seed);
    // That seven attempts in a row are lost, which ends a link, is a matter of 1e-9 a piece.
    open(a, e);
    SplitMix64 random(seed);
    for (uint64_t i = 1; i <= 300 && !HasFailure(); ++i) {
      const auto rows = static_cast<uint32_t>(random.below(6));
      exchange(static_cast<uint32_t>(random.below(6)), i, rows,
               rows == 0 ? 0 : rows + static_cast<uint32_t>(random.below(11 - rows)));
    }
    attention.fabric.reset();
    expert.fabric.reset();
    attention.events.clear();
    expert.events.clear();
  }
}

}  // namespace
}  // namespace volley::transport
