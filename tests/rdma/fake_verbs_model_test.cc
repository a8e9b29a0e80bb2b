// Goal: whatever is done to several queue pairs of several devices, FakeVerbs delivers in order,
// exactly once, with the right bytes, accounts for every request, and takes and refuses posts as a
// model predicts; what was not hurt by a fault does not fail.
// Method: random operations and faults by seed, a model that knows what each queue pair was given,
// and a last phase without faults in which all that can end must end.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "rdma/fake_node.h"
#include "volley/base/random.h"

namespace volley::rdma {
namespace {

constexpr size_t kNodes = 3;
constexpr size_t kEnds = 8;  // Two neighbouring ones are a link.
constexpr uint32_t kSends = 8;
constexpr uint32_t kReceives = 12;
constexpr uint32_t kSlots = 64;
constexpr uint32_t kSlotBytes = 1024;
constexpr size_t kRingBytes = size_t{kSlots} * kSlotBytes;

struct Sent {
  uint32_t bytes = 0;
  bool immediate = false;
  bool signalled = false;
};

/// One end of a link, and what the model knows of the writes in its direction.
struct End {
  size_t node = 0;
  std::unique_ptr<QueuePair> queue_pair;
  std::vector<Sent> sent;
  size_t freed = 0;      ///< Requests whose place is free again.
  size_t completed = 0;  ///< Requests whose end is known.
  size_t received = 0;   ///< Requests that the peer has seen, by an immediate at or behind them.
  bool failed = false;
};

class Model {
 public:
  explicit Model(uint64_t seed)
      : rng_(seed ^ 0x9e3779b97f4a7c15), network_({.seed = seed, .faults = kFaults}) {
    for (size_t i = 0; i < kNodes; ++i) {
      nodes_.push_back(std::make_unique<Node>(network_, static_cast<uint8_t>(i + 1),
                                              NodeOptions{.completions = kEnds * kSends + kReceives,
                                                          .receives = kReceives,
                                                          .bytes = 2 * kEnds * kRingBytes}));
    }
    for (size_t link = 0; link < kEnds / 2; ++link) make_link(link);
  }

  void run(int operations) {
    for (int i = 0; i < operations && !::testing::Test::HasFailure(); ++i) operate();
    settle();
  }
  /// Of all that was observed, in order.
  uint64_t digest() const { return digest_; }
  uint64_t delivered() const { return delivered_; }
  uint64_t failed() const { return failed_; }
  uint64_t refused() const { return refused_; }

 private:
  static constexpr FakeFaults kFaults{
      .drop_rate = 0.02, .completion_delay_max = 4, .flushed_receive_rate = 0.3};

  void operate() {
    const size_t node = rng_.below(kNodes);
    const size_t end = rng_.below(kEnds);
    const uint64_t dice = rng_.below(1000);
    if (dice < 550) {
      post(end);
    } else if (dice < 850) {
      poll(node);
    } else if (dice < 940) {
      post_receives(node, static_cast<uint32_t>(1 + rng_.below(4)));
    } else if (dice < 970) {
      arm(node);
    } else if (dice < 975) {
      ends_[end].queue_pair->fail();
      hurt_[end / 2] = true;
    } else if (dice < 980) {
      partition(node, (node + 1) % kNodes, dice == 975);
    } else if (dice < 982) {
      renew_region(node);
    } else if (hurt_[end / 2]) {
      renew_link(end / 2);
    }
  }

  void make_link(size_t link) {
    End& one = ends_[2 * link];
    End& other = ends_[2 * link + 1];
    one = End{.node = rng_.below(kNodes), .queue_pair = {}, .sent = {}};
    other = End{.node = rng_.below(kNodes), .queue_pair = {}, .sent = {}};
    for (End* end : {&one, &other}) end->queue_pair = nodes_[end->node]->queue_pair(kSends);
    connect(*one.queue_pair, *other.queue_pair, {.receiver_not_ready_retries = 7});
    hurt_[link] = cut_[one.node][other.node];
  }

  void renew_link(size_t link) {
    // As a careful user does: nothing of the old link may come after it is gone.
    for (const size_t end : {2 * link, 2 * link + 1}) ends_[end].queue_pair->fail();
    network_.drain();
    poll_until_empty(ends_[2 * link].node);
    poll_until_empty(ends_[2 * link + 1].node);
    make_link(link);
  }

  void partition(size_t a, size_t b, bool cut) {
    cut_[a][b] = cut_[b][a] = cut;
    hurt([&](const End& one, const End& other) {
      return (one.node == a && other.node == b) || (one.node == b && other.node == a);
    });
    network_.partition(nodes_[a]->gid, nodes_[b]->gid, cut);
  }

  void renew_region(size_t node) {
    hurt([&](const End& one, const End& other) { return one.node == node || other.node == node; });
    Node& owner = *nodes_[node];
    owner.region.reset();
    const std::vector<std::byte> before = owner.memory;
    network_.drain();
    EXPECT_EQ(std::memcmp(before.data(), owner.memory.data(), before.size()), 0)
        << "something landed in a region that was gone";
    owner.region = owner.device->register_memory(owner.memory, true).value();
  }

  template <class Predicate>
  void hurt(Predicate concerned) {
    for (size_t link = 0; link < kEnds / 2; ++link) {
      if (concerned(ends_[2 * link], ends_[2 * link + 1])) hurt_[link] = true;
    }
  }

  static std::byte content(size_t end, size_t request, size_t at) {
    return static_cast<std::byte>(end * 31 + request * 7 + at * (request % 5 + 1) + 1);
  }
  size_t offset(size_t end, bool incoming, size_t request) const {
    return (2 * end + (incoming ? 1 : 0)) * kRingBytes + request % kSlots * kSlotBytes;
  }

  void post(size_t index) {
    End& end = ends_[index];
    const size_t count = 1 + rng_.below(3);
    if (end.sent.size() + count - end.received > kSlots) return;
    Node& from = *nodes_[end.node];
    Node& to = *nodes_[ends_[index ^ 1].node];
    const size_t fitting = std::min(count, kSends - (end.sent.size() - end.freed));
    std::vector<WriteRequest> requests;
    for (size_t i = 0; i < count; ++i) {
      const size_t id = end.sent.size();
      const Sent sent{
          .bytes = static_cast<uint32_t>(rng_.below(kSlotBytes + 1)),
          .immediate = id - end.received >= kSlots / 2 || rng_.below(2) == 0,
          .signalled = id + 1 - end.freed >= kSends || rng_.below(3) == 0,
      };
      WriteRequest request = write(from, to, sent.bytes, static_cast<uint32_t>(id));
      request.signalled = sent.signalled;
      if (sent.immediate) request.immediate = static_cast<uint32_t>(id);
      request.inlined = sent.bytes <= end.queue_pair->inline_bytes();
      request.local += offset(index, false, id);
      request.remote_address += offset(index, true, id);
      requests.push_back(request);
      // The slot of one that will not fit is in use.
      if (i >= fitting) continue;
      for (size_t at = 0; at < sent.bytes; ++at) {
        from.memory[offset(index, false, id) + at] = content(index, id, at);
      }
      end.sent.push_back(sent);
    }
    const Status status = end.queue_pair->post(requests);
    EXPECT_EQ(status.code(), fitting == count ? StatusCode::kOk : StatusCode::kResourceExhausted);
    refused_ += fitting == count ? 0 : 1;
    if (!end.sent.empty()) spoil_inlined(index, fitting);
  }

  /// The source of what was inlined may change at once.
  void spoil_inlined(size_t index, size_t count) {
    End& end = ends_[index];
    for (size_t id = end.sent.size() - count; id < end.sent.size(); ++id) {
      if (end.sent[id].bytes > end.queue_pair->inline_bytes()) continue;
      const auto source =
          nodes_[end.node]->memory.begin() + static_cast<std::ptrdiff_t>(offset(index, false, id));
      std::fill_n(source, end.sent[id].bytes, std::byte{0});
    }
  }

  void post_receives(size_t node, uint32_t count) {
    const uint32_t fitting = std::min(count, kReceives - receives_[node]);
    const Status status = nodes_[node]->receives->post(count);
    EXPECT_EQ(status.code(), fitting == count ? StatusCode::kOk : StatusCode::kResourceExhausted);
    receives_[node] += fitting;
  }

  void arm(size_t node) {
    poll_until_empty(node);
    nodes_[node]->completions->clear_events();
    EXPECT_TRUE(nodes_[node]->completions->arm().ok());
    armed_[node] = true;
  }

  size_t poll(size_t node) {
    const std::vector<Completion> polled = nodes_[node]->poll(1 + rng_.below(6));
    for (const Completion& completion : polled) take(node, completion);
    if (armed_[node] && !polled.empty()) {
      EXPECT_TRUE(readable(nodes_[node]->completions->event_fd()));
      armed_[node] = false;
    }
    return polled.size();
  }
  void poll_until_empty(size_t node) {
    while (poll(node) > 0) {
    }
  }

  void take(size_t node, const Completion& completion) {
    size_t index = 0;
    while (index < kEnds &&
           (ends_[index].node != node ||
            ends_[index].queue_pair->endpoint().queue_pair != completion.queue_pair)) {
      ++index;
    }
    ASSERT_LT(index, kEnds) << "completion of an unknown queue pair " << completion.queue_pair;
    digest_ = (digest_ ^ (index << 40 | uint64_t{completion.received} << 36 |
                          static_cast<uint64_t>(completion.status) << 32 |
                          (completion.received ? completion.immediate : completion.work.owner))) *
              0x100000001b3;
    completion.received ? take_receive(index, completion) : take_sent(index, completion);
  }

  void take_receive(size_t index, const Completion& completion) {
    --receives_[ends_[index].node];
    if (completion.status != CompletionStatus::kOk) {
      EXPECT_EQ(completion.status, CompletionStatus::kFlushed);
      EXPECT_TRUE(hurt_[index / 2]);
      return;
    }
    End& sender = ends_[index ^ 1];
    size_t expected = sender.received;
    while (expected < sender.sent.size() && !sender.sent[expected].immediate) ++expected;
    ASSERT_LT(expected, sender.sent.size()) << "nothing was sent";
    ASSERT_EQ(completion.immediate, expected);
    for (size_t id = sender.received; id <= expected; ++id) {
      const std::byte* slot =
          nodes_[ends_[index].node]->memory.data() + offset(index ^ 1, true, id);
      for (size_t at = 0; at < sender.sent[id].bytes; ++at) {
        ASSERT_EQ(slot[at], content(index ^ 1, id, at)) << "request " << id << " byte " << at;
      }
    }
    sender.received = expected + 1;
    ++delivered_;
  }

  void take_sent(size_t index, const Completion& completion) {
    End& end = ends_[index];
    const size_t id = completion.work.owner;
    ASSERT_GE(id, end.completed);
    ASSERT_LT(id, end.sent.size());
    if (end.failed) {
      EXPECT_EQ(completion.status, CompletionStatus::kFlushed);
      EXPECT_EQ(id, end.completed) << "after a failure every request completes";
    }
    for (size_t skipped = end.completed; skipped < id; ++skipped) {
      EXPECT_FALSE(end.sent[skipped].signalled);
    }
    if (completion.status == CompletionStatus::kOk) {
      EXPECT_TRUE(end.sent[id].signalled);
    } else {
      EXPECT_TRUE(hurt_[index / 2]) << completion_text(completion);
      failed_ += end.failed ? 0 : 1;
      end.failed = true;
    }
    end.completed = end.freed = id + 1;
  }
  static std::string completion_text(const Completion& completion) {
    return "status " + std::to_string(static_cast<int>(completion.status)) + ", request " +
           std::to_string(completion.work.owner);
  }

  void settle() {
    network_.set_faults({});
    const auto run_dry = [&] {
      for (size_t moved = 1; moved > 0;) {
        moved = 0;
        for (size_t node = 0; node < kNodes; ++node) {
          post_receives(node, kReceives - receives_[node]);
          network_.drain();
          while (const size_t polled = poll(node)) moved += polled;
        }
      }
    };
    run_dry();
    for (size_t index = 0; index < kEnds; ++index) {
      SCOPED_TRACE("end " + std::to_string(index));
      const End& end = ends_[index];
      size_t last = end.completed;
      for (size_t id = end.completed; id < end.sent.size(); ++id) {
        if (end.sent[id].signalled || end.failed) last = id + 1;
      }
      EXPECT_EQ(last, end.completed) << "a request that must complete did not";
      if (hurt_[index / 2]) continue;
      EXPECT_FALSE(end.failed);
      for (size_t id = end.received; id < end.sent.size(); ++id) {
        EXPECT_FALSE(end.sent[id].immediate) << "request " << id << " was not delivered";
      }
    }
  }

  SplitMix64 rng_;
  FakeNetwork network_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::array<End, kEnds> ends_;
  std::array<bool, kEnds / 2> hurt_{};
  std::array<uint32_t, kNodes> receives_{};  ///< Posted, and no completion polled.
  std::array<bool, kNodes> armed_{};
  std::array<std::array<bool, kNodes>, kNodes> cut_{};
  uint64_t digest_ = 0xcbf29ce484222325, delivered_ = 0, failed_ = 0, refused_ = 0;
};

TEST(FakeVerbsModel, RandomOperationsMatchTheModel) {
  uint64_t delivered = 0, failed = 0, refused = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Model model(seed);
    model.run(3000);
    if (HasFailure()) return;
    delivered += model.delivered();
    failed += model.failed();
    refused += model.refused();
  }
  // The operations must reach the interesting states.
  EXPECT_GT(delivered, 10'000u);
  EXPECT_GT(failed, 200u);
  EXPECT_GT(refused, 5'000u);
}

TEST(FakeVerbsModel, OneSeedGivesOneRun) {
  Model first(5), second(5), other(6);
  first.run(1000);
  second.run(1000);
  other.run(1000);
  EXPECT_EQ(first.digest(), second.digest());
  EXPECT_NE(first.digest(), other.digest());
}

}  // namespace
}  // namespace volley::rdma
