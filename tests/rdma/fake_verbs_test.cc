// Goal: FakeVerbs keeps the rules of reliable-connected queue pairs that the RDMA fabric relies on,
// so that what passes over it has met them.
// Method: two nodes on a network that the test moves step by step (`manual`), one test a rule; what
// the seed decides is tried over many seeds, and what must be possible is counted.
#include "rdma/fake_verbs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rdma/fake_node.h"
#include "transport/allocation_counter.h"

namespace volley::rdma {
namespace {

constexpr FakeNetworkOptions kManual{.pieces_per_step_max = 1, .manual = true, .faults = {}};

/// What a poll gave, as (id or immediate, status).
std::vector<std::pair<uint32_t, CompletionStatus>> brief(const std::vector<Completion>& polled) {
  std::vector<std::pair<uint32_t, CompletionStatus>> result;
  for (const Completion& completion : polled) {
    result.emplace_back(completion.received ? completion.immediate : completion.work.owner,
                        completion.status);
  }
  return result;
}
using Brief = std::vector<std::pair<uint32_t, CompletionStatus>>;
using enum CompletionStatus;

class FakeVerbs : public ::testing::Test {
 protected:
  void SetUp() override { connect(*to_b, *to_a, {.retries = 2, .receiver_not_ready_retries = 7}); }
  void post_receives(uint32_t count) { ASSERT_TRUE(b.receives->post(count).ok()); }

  FakeNetwork network{kManual};
  Node a{network, 1};
  Node b{network, 2};
  std::unique_ptr<QueuePair> to_b = a.queue_pair();
  std::unique_ptr<QueuePair> to_a = b.queue_pair();
};

TEST_F(FakeVerbs, AMessageArrivesOnce) {
  post_receives(2);
  a.fill(0, 700, 7);
  ASSERT_TRUE(post(*to_b, message(a, b, 700, 42)).ok());
  network.drain();
  EXPECT_EQ(b.count(7), 700u);
  const std::vector<Completion> received = b.poll();
  ASSERT_EQ(received.size(), 1u);
  EXPECT_TRUE(received[0].received);
  EXPECT_EQ(received[0].status, kOk);
  EXPECT_EQ(received[0].immediate, 42u);
  EXPECT_EQ(received[0].queue_pair, to_a->endpoint().queue_pair);
  EXPECT_EQ(received[0].work, WorkId{});
  const std::vector<Completion> sent = a.poll();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_FALSE(sent[0].received);
  EXPECT_EQ(sent[0].status, kOk);
  EXPECT_EQ(sent[0].work.owner, 42u);
  EXPECT_EQ(sent[0].queue_pair, to_b->endpoint().queue_pair);
  network.drain();
  EXPECT_TRUE(a.poll().empty());
  EXPECT_TRUE(b.poll().empty());
}

TEST_F(FakeVerbs, PayloadLandsPieceByPieceBeforeItsCompletion) {
  post_receives(1);
  a.fill(0, 1000, 7);
  ASSERT_TRUE(post(*to_b, message(a, b, 1000, 1)).ok());
  EXPECT_EQ(b.count(7), 0u);
  for (const size_t landed : {256u, 512u, 768u, 1000u}) {
    ASSERT_TRUE(network.step());
    EXPECT_EQ(b.count(7), landed);
    EXPECT_TRUE(b.poll().empty());
  }
  ASSERT_TRUE(network.step());
  EXPECT_EQ(b.poll().size(), 1u);
  EXPECT_TRUE(a.poll().empty()) << "the acknowledgement is a step of its own";
  ASSERT_TRUE(network.step());
  EXPECT_EQ(a.poll().size(), 1u);
  EXPECT_FALSE(network.step());
}

TEST_F(FakeVerbs, LocalMemoryIsReadWhenItIsSentUnlessInlined) {
  a.fill(0, 512, 7);
  ASSERT_TRUE(post(*to_b, write(a, b, 512)).ok());
  ASSERT_TRUE(network.step());
  a.fill(0, 512, 8);
  network.drain();
  EXPECT_EQ(b.count(7), 256u);
  EXPECT_EQ(b.count(8), 256u);

  WriteRequest inlined = write(a, b, 40);
  inlined.inlined = true;
  inlined.lkey = 0;
  a.fill(0, 40, 9);
  ASSERT_TRUE(post(*to_b, inlined).ok());
  a.fill(0, 40, 10);
  network.drain();
  EXPECT_EQ(b.count(9), 40u);
  EXPECT_EQ(b.count(10), 0u);
}

TEST_F(FakeVerbs, InliningMoreThanGivenIsRefused) {
  ASSERT_EQ(to_b->inline_bytes(), 64u) << "40 were asked for";
  WriteRequest inlined = write(a, b, 65);
  inlined.inlined = true;
  EXPECT_EQ(post(*to_b, inlined).code(), StatusCode::kInternal);
  network.drain();
  EXPECT_TRUE(a.poll().empty());
}

TEST_F(FakeVerbs, AnImmediateWaitsForAReceiveForEver) {
  ASSERT_TRUE(post(*to_b, message(a, b, 100, 1)).ok());
  ASSERT_TRUE(post(*to_b, message(a, b, 100, 2)).ok());
  network.drain();
  EXPECT_TRUE(a.poll().empty());
  post_receives(1);
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kOk}}));
  EXPECT_EQ(brief(b.poll()), (Brief{{1, kOk}}));
  post_receives(1);
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{2, kOk}}));
}

TEST_F(FakeVerbs, AnImmediateFailsWhenReceiverNotReadyRetriesEnd) {
  auto impatient = a.queue_pair();
  auto peer = b.queue_pair();
  connect(*impatient, *peer, {.receiver_not_ready_retries = 2});
  ASSERT_TRUE(post(*impatient, message(a, b, 0, 1)).ok());
  for (int attempt = 0; attempt < 2; ++attempt) ASSERT_TRUE(network.step());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kReceiverNotReady}}));
  post_receives(1);
  network.drain();
  EXPECT_TRUE(b.poll().empty());
}

TEST_F(FakeVerbs, AReceiveInTimeSavesAnImmediate) {
  auto impatient = a.queue_pair();
  auto peer = b.queue_pair();
  connect(*impatient, *peer, {.receiver_not_ready_retries = 2});
  ASSERT_TRUE(post(*impatient, message(a, b, 0, 1)).ok());
  for (int attempt = 0; attempt < 2; ++attempt) ASSERT_TRUE(network.step());
  post_receives(1);
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kOk}}));
}

TEST_F(FakeVerbs, TheRemoteRegionIsChecked) {
  const auto fails = [&](const char* what, const WriteRequest& request) {
    SCOPED_TRACE(what);
    auto one = a.queue_pair();
    auto other = b.queue_pair();
    connect(*one, *other);
    ASSERT_TRUE(post(*one, request).ok());
    ASSERT_TRUE(post(*other, write(b, a, 8, 77)).ok());
    network.drain();
    EXPECT_EQ(brief(a.poll()), (Brief{{5, kRemoteAccess}}));
    // The peer breaks too: its own write may have been quicker, later ones are flushed.
    ASSERT_TRUE(post(*other, write(b, a, 8, 78)).ok());
    network.drain();
    const Brief peer = brief(b.poll());
    ASSERT_EQ(peer.size(), 2u);
    EXPECT_EQ(peer[1], (std::pair{78u, kFlushed}));
    const std::optional<AsyncEvent> event = b.device->next_event();
    ASSERT_TRUE(event.has_value());
    EXPECT_EQ(event->kind, AsyncEventKind::kQueuePairError);
    EXPECT_EQ(event->queue_pair, other->endpoint().queue_pair);
  };
  WriteRequest request = write(a, b, 100, 5);
  request.rkey ^= 1;
  fails("unknown key", request);
  request = write(a, b, 100, 5);
  request.rkey = b.region->lkey();
  fails("the local key", request);
  request.rkey = a.region->rkey();
  fails("a key of another device", request);
  request = write(a, b, 100, 5);
  request.remote_address += b.memory.size() - 99;
  fails("one byte behind the end", request);
  request.remote_address = reinterpret_cast<uintptr_t>(b.memory.data()) - 1;
  fails("one byte before the start", request);
  request = write(a, b, 100, 5);
  auto small = b.device->register_memory({b.memory.data(), 99}, true).value();
  request.rkey = small->rkey();
  fails("more than all of it", request);
  auto read_only = b.device->register_memory(b.memory, false).value();
  request = write(a, b, 100, 5);
  request.rkey = read_only->rkey();
  fails("not for remote writes", request);
  request.rkey = b.device->register_memory(b.memory, true).value()->rkey();
  fails("gone", request);
}

TEST_F(FakeVerbs, TheLastByteOfARegionCanBeWritten) {
  WriteRequest request = write(a, b, 100, 5);
  request.remote_address += b.memory.size() - 100;
  ASSERT_TRUE(post(*to_b, request).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{5, kOk}}));
}

TEST_F(FakeVerbs, TheLocalRegionIsChecked) {
  const auto fails = [&](const char* what, const WriteRequest& request) {
    SCOPED_TRACE(what);
    auto one = a.queue_pair();
    auto other = b.queue_pair();
    connect(*one, *other);
    ASSERT_TRUE(post(*one, request).ok());
    network.drain();
    EXPECT_EQ(brief(a.poll()), (Brief{{5, kLocalError}}));
    ASSERT_TRUE(post(*other, write(b, a, 0, 78)).ok());
    network.drain();
    EXPECT_EQ(brief(b.poll()), (Brief{{78, kRetryExceeded}})) << "the peer finds out by itself";
  };
  WriteRequest request = write(a, b, 100, 5);
  request.lkey = a.region->rkey();
  fails("the remote key", request);
  request.lkey = b.region->lkey();
  fails("a key of another device", request);
  request = write(a, b, 100, 5);
  request.local += a.memory.size() - 99;
  fails("one byte behind the end", request);
  request = write(a, b, 100, 5);
  request.lkey = a.device->register_memory(a.memory, true).value()->lkey();
  fails("gone", request);
}

TEST_F(FakeVerbs, NothingLandsInARegionThatIsGone) {
  post_receives(1);
  a.fill(0, 1000, 7);
  ASSERT_TRUE(post(*to_b, message(a, b, 1000, 1)).ok());
  for (int piece = 0; piece < 2; ++piece) ASSERT_TRUE(network.step());
  b.region.reset();
  network.drain();
  EXPECT_EQ(b.count(7), 512u);
  EXPECT_TRUE(b.poll().empty());
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRemoteAccess}}));
}

TEST_F(FakeVerbs, AWriteOfNothingNeedsNoKeys) {
  post_receives(1);
  WriteRequest request = message(a, b, 0, 3);
  request.lkey = request.rkey = 0;
  request.local = nullptr;
  ASSERT_TRUE(post(*to_b, request).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{3, kOk}}));
  EXPECT_EQ(brief(b.poll()), (Brief{{3, kOk}}));
}

TEST_F(FakeVerbs, APeerThatIsGoneExceedsTheRetries) {
  to_a.reset();
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 1)).ok());
  for (int attempt = 0; attempt < 3; ++attempt) ASSERT_TRUE(network.step());
  EXPECT_TRUE(a.poll().empty());
  ASSERT_TRUE(network.step());
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}})) << "after one attempt and two retries";
}

TEST_F(FakeVerbs, APeerThatFailedExceedsTheRetries) {
  a.fill(0, 8, 7);
  to_a->fail();
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}}));
  EXPECT_EQ(b.count(7), 0u);
}

TEST_F(FakeVerbs, APeerThatWasKilledExceedsTheRetries) {
  network.kill(*b.device);
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}}));
  std::vector<Completion> none(1);
  EXPECT_EQ(b.completions->poll(none).status().code(), StatusCode::kInternal);
  EXPECT_EQ(post(*to_a, write(b, a, 8)).code(), StatusCode::kInternal);
  EXPECT_EQ(b.receives->post(1).code(), StatusCode::kInternal);
  EXPECT_EQ(b.completions->arm().code(), StatusCode::kInternal);
}

TEST_F(FakeVerbs, APartitionThatHealsInTimeCostsNothing) {
  network.partition(a.gid, b.gid, true);
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 1)).ok());
  for (int attempt = 0; attempt < 2; ++attempt) ASSERT_TRUE(network.step());
  network.partition(a.gid, b.gid, false);
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kOk}}));

  network.partition(b.gid, a.gid, true);
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 2)).ok());
  network.drain();
  network.partition(b.gid, a.gid, false);
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 3)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{2, kRetryExceeded}, {3, kFlushed}})) << "broken for good";
}

TEST_F(FakeVerbs, AWriteMayHaveLandedAlthoughItFailed) {
  post_receives(1);
  network.partition_one_way(b.gid, a.gid, true);
  a.fill(0, 8, 7);
  ASSERT_TRUE(post(*to_b, message(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}}));
  EXPECT_EQ(brief(b.poll()), (Brief{{1, kOk}}));
  EXPECT_EQ(b.count(7), 8u);
}

TEST_F(FakeVerbs, NothingLandsThroughAOneWayPartition) {
  network.partition_one_way(a.gid, b.gid, true);
  a.fill(0, 8, 7);
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}}));
  EXPECT_EQ(b.count(7), 0u);
}

TEST_F(FakeVerbs, ARefusalThatDoesNotComeBackIsARetry) {
  network.partition_one_way(b.gid, a.gid, true);
  ASSERT_TRUE(post(*to_b, message(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}}));
}

TEST_F(FakeVerbs, WhatIsOutstandingAfterAnErrorIsFlushedInOrder) {
  std::vector<WriteRequest> requests;
  for (uint32_t id = 0; id < 6; ++id) {
    requests.push_back(write(a, b, 8, id));
    requests.back().signalled = id % 2 == 0;
  }
  requests[2].rkey ^= 1;
  ASSERT_TRUE(to_b->post(requests).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()),
            (Brief{{0, kOk}, {2, kRemoteAccess}, {3, kFlushed}, {4, kFlushed}, {5, kFlushed}}));
  WriteRequest later = write(a, b, 8, 9);
  later.signalled = false;
  ASSERT_TRUE(post(*to_b, later).ok());
  EXPECT_TRUE(a.poll().empty());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{9, kFlushed}}));
}

TEST_F(FakeVerbs, FailFlushesEvenWhatHasLanded) {
  a.fill(0, 8, 7);
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 1)).ok());
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 2)).ok());
  // It lands and is done at the peer; the acknowledgement is under way.
  for (int step = 0; step < 2; ++step) ASSERT_TRUE(network.step());
  EXPECT_EQ(b.count(7), 8u);
  to_b->fail();
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kFlushed}, {2, kFlushed}}));
}

TEST_F(FakeVerbs, PlacesComeBackByPollingALaterSignalledRequest) {
  auto one = a.queue_pair(4);
  auto other = b.queue_pair();
  connect(*one, *other);
  std::vector<WriteRequest> requests;
  for (uint32_t id = 0; id < 6; ++id) {
    requests.push_back(write(a, b, 8, id));
    requests.back().signalled = id == 1;
  }
  EXPECT_EQ(one->post(requests).code(), StatusCode::kResourceExhausted);
  network.drain();
  EXPECT_EQ(post(*one, requests[4]).code(), StatusCode::kResourceExhausted) << "all four are done";
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kOk}}));
  EXPECT_TRUE(post(*one, requests[4]).ok());
  EXPECT_TRUE(post(*one, requests[5]).ok());
  EXPECT_EQ(post(*one, requests[0]).code(), StatusCode::kResourceExhausted)
      << "two were behind the signalled one";
  one->fail();
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{4, kFlushed}, {5, kFlushed}}));
}

TEST_F(FakeVerbs, ARefusedPostTakesThePrefixThatFits) {
  auto one = a.queue_pair(2);
  auto other = b.queue_pair();
  connect(*one, *other);
  const std::vector<WriteRequest> requests{write(a, b, 8, 0), write(a, b, 8, 1), write(a, b, 8, 2)};
  EXPECT_EQ(one->post(requests).code(), StatusCode::kResourceExhausted);
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{0, kOk}, {1, kOk}}));
}

TEST_F(FakeVerbs, AFullSharedReceiveQueueRefuses) {
  EXPECT_TRUE(b.receives->post(10).ok());
  EXPECT_EQ(b.receives->post(7).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(b.receives->post(1).code(), StatusCode::kResourceExhausted) << "six of seven fitted";
  ASSERT_TRUE(post(*to_b, message(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(b.receives->post(1).code(), StatusCode::kResourceExhausted) << "not polled yet";
  EXPECT_EQ(b.poll().size(), 1u);
  EXPECT_TRUE(b.receives->post(1).ok());
}

TEST(FakeVerbsQueues, AnOverrunCompletionQueueIsLostForEver) {
  FakeNetwork network(kManual);
  Node a(network, 1, {.completions = 2});
  Node b(network, 2);
  auto one = a.queue_pair();
  auto other = b.queue_pair();
  connect(*one, *other);
  for (uint32_t id = 0; id < 2; ++id) ASSERT_TRUE(post(*one, write(a, b, 8, id)).ok());
  network.drain();
  EXPECT_FALSE(readable(a.device->async_fd()));
  ASSERT_TRUE(post(*one, write(a, b, 8, 2)).ok());
  network.drain();
  std::vector<Completion> polled(4);
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(a.completions->poll(polled).status().code(), StatusCode::kInternal);
  }
  EXPECT_EQ(a.completions->arm().code(), StatusCode::kInternal);
  EXPECT_TRUE(readable(a.device->async_fd()));
  EXPECT_EQ(a.device->next_event()->kind, AsyncEventKind::kQueueError);
  ASSERT_TRUE(post(*other, write(b, a, 8, 7)).ok());
  network.drain();
  EXPECT_EQ(brief(b.poll()), (Brief{{7, kRetryExceeded}})) << "its queue pairs broke";
}

TEST_F(FakeVerbs, ArmingGivesOneEventForTheNextCompletion) {
  const auto send = [&](uint32_t id) {
    ASSERT_TRUE(post(*to_b, write(a, b, 8, id)).ok());
    network.drain();
  };
  const int fd = a.completions->event_fd();
  send(0);
  EXPECT_FALSE(readable(fd)) << "not armed";
  ASSERT_TRUE(a.completions->arm().ok());
  EXPECT_FALSE(readable(fd)) << "an old completion is not a new one";
  send(1);
  EXPECT_TRUE(readable(fd));
  a.completions->clear_events();
  EXPECT_FALSE(readable(fd));
  send(2);
  EXPECT_FALSE(readable(fd)) << "one event for one arm";
  EXPECT_EQ(a.poll().size(), 3u);
  ASSERT_TRUE(a.completions->arm().ok());
  ASSERT_TRUE(a.completions->arm().ok());
  send(3);
  EXPECT_TRUE(readable(fd));
  a.completions->clear_events();
  send(4);
  EXPECT_FALSE(readable(fd)) << "arming twice is arming once";
}

TEST_F(FakeVerbs, ABrokenQueuePairConsumesNoReceiveAfterTheLast) {
  post_receives(2);
  ASSERT_TRUE(post(*to_b, message(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_FALSE(readable(b.device->async_fd()));
  to_a->fail();
  EXPECT_FALSE(b.device->next_event().has_value()) << "a step of its own";
  ASSERT_TRUE(post(*to_b, message(a, b, 8, 2)).ok());
  network.drain();
  EXPECT_TRUE(readable(b.device->async_fd()));
  const std::optional<AsyncEvent> event = b.device->next_event();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->kind, AsyncEventKind::kLastReceiveReached);
  EXPECT_EQ(event->queue_pair, to_a->endpoint().queue_pair);
  EXPECT_FALSE(readable(b.device->async_fd()));
  EXPECT_FALSE(b.device->next_event().has_value());
  EXPECT_EQ(brief(b.poll()), (Brief{{1, kOk}}));
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kOk}, {2, kRetryExceeded}}));
}

TEST_F(FakeVerbs, AFailingQueuePairCanTakeAReceiveAlong) {
  network.set_faults({.flushed_receive_rate = 1});
  post_receives(1);
  to_a->fail();
  network.drain();
  const std::vector<Completion> polled = b.poll();
  ASSERT_EQ(polled.size(), 1u);
  EXPECT_TRUE(polled[0].received);
  EXPECT_EQ(polled[0].status, kFlushed);
}

TEST_F(FakeVerbs, EventsOfADestroyedQueuePairAreForgotten) {
  to_a->fail();
  network.drain();
  EXPECT_TRUE(readable(b.device->async_fd()));
  to_a.reset();
  EXPECT_FALSE(readable(b.device->async_fd()));
  EXPECT_FALSE(b.device->next_event().has_value());
}

TEST_F(FakeVerbs, PortsAndDevicesReportWhatHappensToThem) {
  network.set_port(b.gid, false);
  ASSERT_TRUE(b.device->next_event()->kind == AsyncEventKind::kPortDown);
  ASSERT_TRUE(post(*to_b, write(a, b, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}}));
  network.set_port(b.gid, true);
  ASSERT_TRUE(b.device->next_event()->kind == AsyncEventKind::kPortUp);
  network.break_device(*b.device);
  ASSERT_TRUE(readable(b.device->async_fd()));
  ASSERT_TRUE(b.device->next_event()->kind == AsyncEventKind::kDeviceFatal);
  const std::optional<AsyncEvent> event = a.device->next_event();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->kind, AsyncEventKind::kLastReceiveReached) << "nothing of the other's port";
  EXPECT_FALSE(a.device->next_event().has_value());
}

TEST_F(FakeVerbs, ConnectChecksTheEndpoint) {
  const auto code = [&](auto change) {
    auto one = a.queue_pair();
    Endpoint peer = to_a->endpoint();
    ConnectionOptions options;
    change(peer, options);
    return one->connect(peer, options).code();
  };
  EXPECT_EQ(code([](auto&, auto&) {}), StatusCode::kOk);
  EXPECT_EQ(code([](auto& peer, auto&) { peer.link_layer = LinkLayer::kInfiniBand; }),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(code([](auto& peer, auto&) { peer.gid = gid_of(9); }), StatusCode::kUnavailable);
  EXPECT_EQ(code([](auto& peer, auto&) { peer.mtu = 0; }), StatusCode::kInternal);
  EXPECT_EQ(code([](auto& peer, auto&) { peer.queue_pair = 1 << 24; }), StatusCode::kInternal);
  EXPECT_EQ(code([](auto&, auto& options) { options.retries = 7; }), StatusCode::kInternal);
  EXPECT_EQ(code([](auto&, auto& options) { options.ack_timeout = 0; }), StatusCode::kInternal);

  EXPECT_EQ(to_b->connect(to_a->endpoint(), {}).code(), StatusCode::kInternal) << "twice";
  EXPECT_EQ(post(*a.queue_pair(), write(a, b, 8)).code(), StatusCode::kInternal) << "not connected";
}

TEST_F(FakeVerbs, QueuePairsOfDifferentLivesDoNotReachEachOther) {
  // As after a restart in which one side kept the other's old endpoint.
  for (const bool mine_is_stale : {false, true}) {
    auto one = a.queue_pair();
    auto other = b.queue_pair();
    Endpoint mine = one->endpoint();
    Endpoint theirs = other->endpoint();
    (mine_is_stale ? mine : theirs).packet_sequence ^= 1;
    ASSERT_TRUE(one->connect(theirs, {}).ok());
    ASSERT_TRUE(other->connect(mine, {}).ok());
    ASSERT_TRUE(post(*one, write(a, b, 8, 1)).ok());
    network.drain();
    EXPECT_EQ(brief(a.poll()), (Brief{{1, kRetryExceeded}}));
  }
}

TEST(FakeVerbsDevices, LimitsAreKept) {
  FakeNetwork network(kManual);
  auto device = network.open({.gid = gid_of(1),
                              .completion_depth_max = 8,
                              .shared_receives_max = 4,
                              .sends_max = 2,
                              .inline_bytes_max = 32,
                              .registration_max = 100});
  std::vector<std::byte> memory(60);
  auto region = device->register_memory(memory, true).value();
  EXPECT_NE(region->lkey(), region->rkey());
  EXPECT_EQ(device->register_memory(memory, true).status().code(), StatusCode::kResourceExhausted);
  region.reset();
  EXPECT_TRUE(device->register_memory(memory, true).ok());
  EXPECT_EQ(device->register_memory({}, true).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(device->create_completion_queue(9).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(device->create_shared_receive_queue(5).status().code(), StatusCode::kInvalidArgument);
  auto completions = device->create_completion_queue(8).value();
  EXPECT_EQ(device->create_queue_pair({.sends = 3}, *completions, nullptr).status().code(),
            StatusCode::kInvalidArgument);
  auto queue_pair =
      device->create_queue_pair({.sends = 2, .inline_bytes = 40}, *completions, nullptr).value();
  EXPECT_EQ(queue_pair->inline_bytes(), 32u);
  auto other = network.open({.gid = gid_of(2)});
  EXPECT_EQ(other->create_queue_pair({.sends = 2}, *completions, nullptr).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(FakeVerbsDevices, TwoProcessesOfAHostShareAPortAndNothingElse) {
  FakeNetwork network(kManual);
  Node a(network, 1);
  Node b(network, 2);
  Node again(network, 2);
  auto one = a.queue_pair();
  auto other = b.queue_pair();
  auto third = again.queue_pair();
  EXPECT_NE(other->endpoint().queue_pair, third->endpoint().queue_pair);
  connect(*one, *other);
  ASSERT_TRUE(post(*one, write(a, again, 8, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kRemoteAccess}}));
  network.kill(*b.device);
  auto fresh = a.queue_pair();
  connect(*fresh, *third);
  ASSERT_TRUE(post(*fresh, write(a, again, 8, 2)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{2, kOk}}));
}

TEST(FakeVerbsFaults, DroppedPiecesAreRetried) {
  FakeNetwork network({.seed = 3, .manual = true, .faults = {.drop_rate = 0.2}});
  Node a(network, 1);
  Node b(network, 2);
  auto one = a.queue_pair();
  auto other = b.queue_pair();
  connect(*one, *other, {.retries = 6});
  a.fill(0, 8192, 7);
  ASSERT_TRUE(post(*one, write(a, b, 8192, 1)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{1, kOk}}));
  EXPECT_EQ(b.count(7), 8192u);
  network.set_faults({.drop_rate = 1});
  ASSERT_TRUE(post(*one, write(a, b, 8192, 2)).ok());
  network.drain();
  EXPECT_EQ(brief(a.poll()), (Brief{{2, kRetryExceeded}}));
}

/// What can happen over the seeds, and must happen for some.
TEST(FakeVerbsSeeds, QueuePairsKeepTheirOwnOrderAndNoOther) {
  int first_wins = 0, second_wins = 0, answered_before_sent = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network({.seed = seed, .manual = true, .faults = {.completion_delay_max = 4}});
    Node a(network, 1);
    Node b(network, 2);
    ASSERT_TRUE(b.receives->post(16).ok());
    std::unique_ptr<QueuePair> from[2] = {a.queue_pair(), a.queue_pair()};
    std::unique_ptr<QueuePair> to[2] = {b.queue_pair(), b.queue_pair()};
    for (int i = 0; i < 2; ++i) connect(*from[i], *to[i]);
    for (uint32_t id = 0; id < 5; ++id) {
      for (int i = 0; i < 2; ++i) ASSERT_TRUE(post(*from[i], message(a, b, 600, id)).ok());
    }
    uint32_t next[2] = {0, 0};
    uint32_t sent = 0;
    while (network.step()) {
      for (const Completion& completion : b.poll()) {
        const int i = completion.queue_pair == to[0]->endpoint().queue_pair ? 0 : 1;
        EXPECT_EQ(completion.immediate, next[i]++);
        if (next[i] == 5 && next[1 - i] < 5) ++(i == 0 ? first_wins : second_wins);
      }
      sent += static_cast<uint32_t>(a.poll().size());
      if (next[0] + next[1] > sent + 1) ++answered_before_sent;
    }
    EXPECT_EQ(next[0], 5u);
    EXPECT_EQ(next[1], 5u);
    EXPECT_EQ(sent, 10u);
  }
  EXPECT_GT(first_wins, 20);
  EXPECT_GT(second_wins, 20);
  EXPECT_GT(answered_before_sent, 20);
}

TEST(FakeVerbsSeeds, ABlockedRequestDoesNotHoldUpEarlierCompletions) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network({.seed = seed, .manual = true, .faults = {}});
    Node a(network, 1);
    Node b(network, 2);
    auto one = a.queue_pair();
    auto other = b.queue_pair();
    connect(*one, *other, {.receiver_not_ready_retries = 7});
    ASSERT_TRUE(b.receives->post(1).ok());
    for (uint32_t id = 0; id < 2; ++id) ASSERT_TRUE(post(*one, message(a, b, 8, id)).ok());
    network.drain();
    EXPECT_EQ(brief(a.poll()), (Brief{{0, kOk}}));
  }
}

TEST(FakeVerbsSeeds, CompletionsAreLateOnBothSides) {
  int late_received = 0, late_sent = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    FakeNetwork network({.seed = seed, .manual = true, .faults = {.completion_delay_max = 5}});
    Node a(network, 1);
    Node b(network, 2);
    auto one = a.queue_pair();
    auto other = b.queue_pair();
    connect(*one, *other);
    ASSERT_TRUE(b.receives->post(1).ok());
    a.fill(0, 8, 7);
    ASSERT_TRUE(post(*one, message(a, b, 8, 1)).ok());
    ASSERT_TRUE(network.step());
    ASSERT_EQ(b.count(7), 8u);
    // Without a delay each takes one step.
    int steps = 0;
    for (; b.poll().empty(); ++steps) ASSERT_TRUE(network.step());
    late_received += steps > 1 ? 1 : 0;
    for (steps = 0; a.poll().empty(); ++steps) ASSERT_TRUE(network.step());
    late_sent += steps > 1 ? 1 : 0;
  }
  EXPECT_GT(late_received, 20);
  EXPECT_GT(late_sent, 20);
}

TEST(FakeVerbsSeeds, ADestroyedQueuePairLeavesItsCompletionsOrNot) {
  int left = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    FakeNetwork network({.seed = seed, .manual = true, .faults = {}});
    Node a(network, 1);
    Node b(network, 2);
    ASSERT_TRUE(b.receives->post(16).ok());
    auto one = a.queue_pair();
    auto other = b.queue_pair();
    connect(*one, *other);
    ASSERT_TRUE(post(*one, message(a, b, 8, 1)).ok());
    network.drain();
    other.reset();
    const size_t polled = b.poll().size();
    left += static_cast<int>(polled);
    EXPECT_TRUE(b.receives->post(1).ok()) << "the place is free either way";
    EXPECT_EQ(b.receives->post(1).code(), StatusCode::kResourceExhausted);
  }
  EXPECT_GT(left, 5);
  EXPECT_LT(left, 35);
}

TEST(FakeVerbsProgress, NodesThatSleepAreWoken) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network({.seed = seed, .faults = {.drop_rate = 0.05, .completion_delay_max = 5}});
    Node a(network, 1);
    Node b(network, 2);
    auto one = a.queue_pair();
    auto other = b.queue_pair();
    connect(*one, *other, {.retries = 6});
    ASSERT_TRUE(b.receives->post(1).ok());
    ASSERT_TRUE(post(*one, message(a, b, 8192, 1)).ok());
    // Arm, poll once more, wait: as the contract says.
    ASSERT_TRUE(b.completions->arm().ok());
    ASSERT_TRUE(!b.poll().empty() || readable(b.completions->event_fd()));
    b.completions->clear_events();
    b.poll();

    ASSERT_TRUE(b.completions->arm().ok());
    EXPECT_TRUE(b.poll().empty());
    EXPECT_FALSE(readable(b.completions->event_fd()));
    ASSERT_TRUE(b.receives->post(1).ok());
    ASSERT_TRUE(post(*one, message(a, b, 8192, 2)).ok());
    EXPECT_TRUE(readable(b.completions->event_fd())) << "the sender did nothing but post";
  }
}

TEST(FakeVerbsProgress, OperationsDoNotAllocate) {
  FakeNetwork network({.seed = 5, .faults = {.completion_delay_max = 3}});
  Node a(network, 1);
  Node b(network, 2);
  auto one = a.queue_pair();
  auto other = b.queue_pair();
  connect(*one, *other);
  std::array<Completion, 8> polled;
  const auto exchange = [&](uint32_t id) {
    bool sent = false, received = false;
    ASSERT_TRUE(b.receives->post(1).ok());
    ASSERT_TRUE(post(*one, message(a, b, 3000, id)).ok());
    if (id % 3 == 0) {
      ASSERT_TRUE(b.completions->arm().ok());
    }
    while (!sent || !received) {
      sent |= *a.completions->poll(polled) > 0;
      received |= *b.completions->poll(polled) > 0;
    }
    b.completions->clear_events();
  };
  exchange(0);
  const uint64_t before = allocations_of_this_thread();
  for (uint32_t id = 1; id < 50; ++id) exchange(id);
  EXPECT_EQ(allocations_of_this_thread(), before);
}

TEST(FakeVerbsProgress, NodesMayRunOnThreadsOfTheirOwn) {
  constexpr uint32_t kRounds = 300;
  FakeNetwork network({.seed = 7, .faults = {.completion_delay_max = 3}});
  Node a(network, 1);
  Node b(network, 2);
  auto one = a.queue_pair();
  auto other = b.queue_pair();
  connect(*one, *other, {.receiver_not_ready_retries = 7});
  // Each waits for the other's message, checks it, and answers.
  const auto run = [](Node& self, Node& peer, QueuePair& queue_pair, bool first) {
    std::array<Completion, 8> polled;
    for (uint32_t round = 0; round < kRounds; ++round) {
      ASSERT_TRUE(self.receives->post(1).ok());
      const auto send = [&] {
        std::memset(self.memory.data() + 4096, static_cast<int>(round & 127), 2000);
        WriteRequest request = message(self, peer, 2000, round);
        request.local += 4096;
        ASSERT_TRUE(post(queue_pair, request).ok());
      };
      if (first) send();
      bool received = false, sent = !first;
      while (!received || !sent) {
        ASSERT_TRUE(self.completions->arm().ok());
        const size_t count = *self.completions->poll(polled);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_EQ(polled[i].status, kOk);
          if (polled[i].received) {
            ASSERT_EQ(polled[i].immediate, round);
            received = true;
          } else if (first) {
            sent = true;
          }
        }
        if (count == 0) {
          ASSERT_TRUE(readable(self.completions->event_fd(), 20'000));
        }
        self.completions->clear_events();
      }
      const auto begin = self.memory.begin();
      ASSERT_EQ(std::count(begin, begin + 2000, std::byte(round & 127)), 2000);
      if (!first) send();
    }
  };
  std::thread thread([&] { run(b, a, *other, false); });
  run(a, b, *one, true);
  thread.join();
}

TEST_F(FakeVerbs, AQueuePairReachesTheRegionsOfItsDomainAlone) {
  const auto domain = b.device->create_protection_domain().value();
  const auto inside = b.device->register_memory(b.memory, true, domain.get()).value();
  const auto sender = a.queue_pair();
  const auto receiver =
      b.device
          ->create_queue_pair({.sends = 4, .inline_bytes = 0, .domain = domain.get()},
                              *b.completions, b.receives.get())
          .value();
  connect(*sender, *receiver);
  WriteRequest request = write(a, b, 64);
  request.rkey = inside->rkey();
  ASSERT_TRUE(post(*sender, request).ok());
  network.drain();
  EXPECT_EQ(a.poll().at(0).status, CompletionStatus::kOk);
  request.rkey = b.region->rkey();  // Of the same memory, in the device's own domain.
  ASSERT_TRUE(post(*sender, request).ok());
  network.drain();
  EXPECT_EQ(a.poll().at(0).status, CompletionStatus::kRemoteAccess);
}

}  // namespace
}  // namespace volley::rdma
