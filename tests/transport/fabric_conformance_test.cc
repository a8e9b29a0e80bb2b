// Goal: every backend keeps the contract of volley/transport/fabric.h, bare and under the fault
// decorator; `rdma` over verbs in memory, and over the ports that VOLLEY_TEST_RDMA_DEVICES names
// ("rxe0,rxe1": connecting nodes use the first, listening ones the second). Method: nodes of one
// process over real memory and loopback sockets, mostly driven by one thread, so that a test
// decides who acts when; content is compared by digest.

#include <absl/strings/str_split.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <new>
#include <thread>

#include "../../src/transport/handshake.h"
#include "../../src/transport/tcp_address.h"
#include "../../src/transport/unix_socket.h"
#include "allocation_counter.h"
#include "fabric_pair.h"
#include "rdma/fake_verbs.h"
#include "volley/transport/pulse_thread.h"
#include "volley/transport/rdma_fabric.h"

namespace volley::transport {
namespace {

using protocol::MessageHeader;
using protocol::MessageKind;

struct Param {
  const char* backend;  ///< "verbs": rdma over real ones.
  bool fault;
  uint8_t rails = 1;
};

std::vector<std::string> rdma_devices() {
  const char* text = std::getenv("VOLLEY_TEST_RDMA_DEVICES");
  if (text == nullptr) return {};
  return absl::StrSplit(text, ',');
}

class FabricConformance : public ::testing::TestWithParam<Param> {
 protected:
  bool is_backend(const char* name) const { return std::string(GetParam().backend) == name; }
  bool is_rdma() const { return is_backend("rdma") || is_backend("verbs"); }
  /// The backends whose handshake goes over TCP and whose slots are not shared with the peer.
  bool is_remote() const { return is_backend("tcp") || is_rdma(); }
  std::string listen() const { return is_remote() ? "127.0.0.1:0" : "auto"; }
  const char* fabric_name() const { return is_rdma() ? "rdma" : GetParam().backend; }

  // Under the decorator messages are late and change places, which no test here may mind.
  Node make(const FabricOptions& options) {
    return make(options, {.delay_max = 100 * kMicrosecond});
  }
  Node make(const FabricOptions& options, const FaultPolicy& policy) {
    Node node{.options = options, .fabric = nullptr, .events = {}};
    auto fabric = make_backend(options);
    EXPECT_TRUE(fabric.ok()) << fabric.status();
    node.fabric = std::move(fabric).value();
    if (GetParam().fault) node.fabric = make_fault_fabric(std::move(node.fabric), policy);
    return node;
  }

  Result<std::unique_ptr<Fabric>> make_backend(FabricOptions options) {
    const size_t side = options.listen.empty() ? 0 : 1;
    if (is_backend("rdma")) {
      std::vector<std::shared_ptr<rdma::Device>> ports;
      for (uint8_t port = 0; port < GetParam().rails; ++port) {
        rdma::FakeDeviceOptions device;
        device.gid = {0xfd, static_cast<uint8_t>(side), port};
        ports.push_back(network.open(device));
      }
      return make_rdma_fabric(options, std::move(ports));
    }
    if (is_backend("verbs")) {
      options.rdma.ports[0].device = rdma_devices()[side % rdma_devices().size()];
      options.rdma.queue_pairs = GetParam().rails;
      // Two nodes on one emulated core: a peer may be away for many milliseconds.
      options.rdma.data.ack_timeout = options.rdma.control.ack_timeout = 16;
    }
    return make_fabric(fabric_name(), options);
  }

  void open() { open(node_options("attention-0"), node_options("expert-0", listen())); }
  void open(const FabricOptions& attention_options, const FabricOptions& expert_options) {
    attention = make(attention_options);
    expert = make(expert_options);
    link();
  }
  void link() {
    const auto id = attention.fabric->connect(expert.fabric->address(), kKey);
    ASSERT_TRUE(id.ok()) << id.status();
    to_expert = *id;
    EXPECT_EQ(pump_for({&attention, &expert}, attention, EventKind::kOpened).link, to_expert);
    to_attention = pump_for({&attention, &expert}, expert, EventKind::kOpened).link;
  }

  void send(Node& from, LinkId id, const MessageHeader& header) {
    const bool dispatch = header.kind == MessageKind::kDispatch;
    const auto& geometry = from.options.geometry;
    fill(from.fabric->send_slot(id, header.slot), dispatch ? geometry.dispatch : geometry.answer,
         header);
    from.fabric->post(id, header.slot);
  }
  // Waits for the message and compares it with the one sent, byte for byte.
  void expect(Node& to, LinkId id, const MessageHeader& sent) {
    const FabricEvent event = pump_for({&attention, &expert}, to, EventKind::kMessage);
    ASSERT_EQ(event.link, id);
    ASSERT_EQ(event.slot, sent.slot);
    const bool dispatch = sent.kind == MessageKind::kDispatch;
    const auto& layout = dispatch ? to.options.geometry.dispatch : to.options.geometry.answer;
    const std::byte* slot = to.fabric->recv_slot(id, sent.slot);
    EXPECT_EQ(std::memcmp(&to.fabric->recv_header(id, sent.slot), &sent, sizeof sent), 0);
    EXPECT_EQ(std::memcmp(slot, &sent, sizeof sent), 0);
    EXPECT_EQ(digest(slot, layout, sent), expected_digest(layout, sent));
  }
  void exchange(uint32_t slot, uint64_t sequence, uint32_t rows, uint32_t entries) {
    MessageHeader header = make_header(attention, to_expert, slot, true, sequence, rows, entries);
    send(attention, to_expert, header);
    expect(expert, to_attention, header);
    header = make_header(expert, to_attention, slot, false, sequence, entries, 0);
    send(expert, to_attention, header);
    expect(attention, to_expert, header);
  }

  // Connects with options or a key that the listener must refuse; the reason must name `word`.
  void expect_refusal(const FabricOptions& options, const LinkKey& key, StatusCode code,
                      const std::string& word) {
    Node stranger = make(options);
    const auto id = stranger.fabric->connect(expert.fabric->address(), key);
    ASSERT_TRUE(id.ok()) << id.status();
    const FabricEvent event = pump_for({&stranger, &expert}, stranger, EventKind::kClosed);
    EXPECT_EQ(event.link, *id);
    EXPECT_EQ(event.code, code);
    EXPECT_NE(stranger.fabric->close_reason(*id).find(word), std::string::npos)
        << stranger.fabric->close_reason(*id);
    EXPECT_TRUE(expert.events.empty());
  }

  rdma::FakeNetwork network;
  Node attention, expert;
  LinkId to_expert, to_attention;
};

TEST_P(FabricConformance, OpensAndNamesThePeer) {
  open();
  EXPECT_STREQ(attention.fabric->name(), fabric_name());
  EXPECT_EQ(attention.fabric->address(), "");
  EXPECT_EQ(attention.fabric->peer(to_expert).name, "expert-0");
  EXPECT_EQ(attention.fabric->peer(to_expert).incarnation, expert.options.self.incarnation);
  EXPECT_EQ(expert.fabric->peer(to_attention).name, "attention-0");
  EXPECT_EQ(expert.fabric->peer(to_attention).incarnation, attention.options.self.incarnation);
  EXPECT_EQ(attention.fabric->wire_link(to_expert), expert.fabric->wire_link(to_attention));
}

TEST_P(FabricConformance, RefusesStrangersWithTheReason) {
  open();
  LinkKey wrong = kKey;
  wrong[15] ^= 1;
  expect_refusal(node_options("a"), wrong, StatusCode::kUnauthenticated, "key");
  FabricOptions options = node_options("a");
  options.geometry = protocol::LinkGeometry::make(2, 5, 2, 48);
  expect_refusal(options, kKey, StatusCode::kFailedPrecondition, "micro_batches is 2");
  options.geometry = protocol::LinkGeometry::make(3, 5, 2, 64);
  expect_refusal(options, kKey, StatusCode::kFailedPrecondition, "dispatch.row_bytes is 64");
  options = node_options("a");
  options.layers = 8;
  expect_refusal(options, kKey, StatusCode::kFailedPrecondition, "layers is 8");
  options = node_options("a");
  options.dtype = 2;
  expect_refusal(options, kKey, StatusCode::kFailedPrecondition, "dtype is 2");
  options = node_options("a");
  options.dispatch_dtype = 3;
  expect_refusal(options, kKey, StatusCode::kFailedPrecondition, "dispatch_dtype is 3");
  options = node_options("a");
  options.geometry = protocol::LinkGeometry::make(3, 5, 2, 48, 64);
  expect_refusal(options, kKey, StatusCode::kFailedPrecondition, "answer.row_bytes is 64");
  options.geometry = protocol::LinkGeometry::make(3, 5, 2, 48, 48, protocol::Combine::kPreReduce);
  expect_refusal(options, kKey, StatusCode::kFailedPrecondition,
                 "combine is pre_reduce (4 bytes per weight) at the connecting node and exact (0) "
                 "at the listener");
  exchange(0, 1, 1, 1);  // The link that was there does not notice.
}

TEST_P(FabricConformance, RefusesAnotherWireVersionWithTheReason) {
  expert = make(node_options("expert-0", listen()));
  // What another version says after its first 8 bytes, and how much, is its own affair.
  for (const size_t bytes : {size_t{8}, sizeof(Hello)}) {
    UniqueFd socket;
    if (is_remote()) {
      const auto address = parse_tcp_address(expert.fabric->address(), false);
      ASSERT_TRUE(address.ok());
      socket = UniqueFd(::socket(AF_INET, SOCK_STREAM, 0));
      ASSERT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address->storage),
                          address->length),
                0);
    } else {
      auto connected = connect_abstract(expert.fabric->address());
      ASSERT_TRUE(connected.ok()) << connected.status();
      socket = std::move(connected).value();
    }
    Hello hello = make_hello(node_options("attention-9"), kKey);
    hello.wire_version = 9;
    ASSERT_EQ(::send(socket.get(), &hello, bytes, 0), static_cast<ssize_t>(bytes));
    Welcome welcome;
    ASSERT_TRUE(pump({&expert}, [&] {
      return ::recv(socket.get(), &welcome, sizeof welcome, MSG_DONTWAIT) ==
             static_cast<ssize_t>(sizeof welcome);
    }));
    EXPECT_EQ(check_welcome(welcome).code(), StatusCode::kFailedPrecondition);
    EXPECT_NE(std::string(welcome.reason).find("wire_version is 9"), std::string::npos)
        << welcome.reason;
  }
}

// A stranger without a key must not have the engine thread for itself.
TEST_P(FabricConformance, AFloodFromARefusedCallerStopsNobody) {
  if (!is_remote()) GTEST_SKIP() << "packets of these backends have a bounded size and count";
  open();
  const auto address = parse_tcp_address(expert.fabric->address(), false);
  ASSERT_TRUE(address.ok());
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM, 0));
  ASSERT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address->storage),
                      address->length),
            0);
  std::jthread flood([&socket](const std::stop_token& stop) {
    const std::vector<std::byte> zeros(64 << 10);
    while (!stop.stop_requested() &&
           ::send(socket.get(), zeros.data(), zeros.size(), MSG_NOSIGNAL | MSG_DONTWAIT) != 0) {
    }
  });
  for (uint64_t i = 1; i <= 200 && !HasFailure(); ++i) {
    const Nanos start = monotonic_now();
    expert.poll();
    // It is 0 but for preemption: a loop until the flood ends would take for ever.
    EXPECT_LT(monotonic_now() - start, 10 * kSecond);
  }
  exchange(0, 1, 5, 10);
}

TEST_P(FabricConformance, RefusesMoreLinksThanItHasMemoryFor) {
  FabricOptions few = node_options("expert-0", listen());
  few.links_max = 1;
  open(node_options("attention-0"), few);
  expect_refusal(node_options("attention-1"), kKey, StatusCode::kResourceExhausted, "all 1 links");
  expert.fabric->close(to_attention);
  pump_for({&attention, &expert}, attention, EventKind::kClosed);
  link();  // The place is free again.
  exchange(0, 1, 1, 1);

  few = node_options("attention-2");
  few.links_max = 1;
  Node busy = make(few);
  ASSERT_TRUE(busy.fabric->connect(expert.fabric->address(), kKey).ok());
  EXPECT_EQ(busy.fabric->connect(expert.fabric->address(), kKey).status().code(),
            StatusCode::kResourceExhausted);
}

TEST_P(FabricConformance, CarriesEverySizeInEverySlot) {
  open();
  const auto& layout = attention.options.geometry.dispatch;
  uint64_t sequence = 0;
  for (uint32_t slot = 0; slot < attention.options.geometry.slot_count(); ++slot) {
    for (uint32_t rows = 0; rows <= layout.rows_max; ++rows) {
      for (uint32_t entries = rows; entries <= (rows > 0 ? layout.entries_max : 0); ++entries) {
        exchange(slot, ++sequence, rows, entries);
        if (HasFatalFailure()) return;
      }
    }
  }
  const Fabric::Counters sent = attention.fabric->counters();
  EXPECT_EQ(sent.messages_sent, sequence);
  EXPECT_EQ(sent.messages_received, sequence);
  EXPECT_EQ(sent.bytes_sent, expert.fabric->counters().bytes_received);
  EXPECT_EQ(sent.bytes_received, expert.fabric->counters().bytes_sent);
}

TEST_P(FabricConformance, CarriesTheWeightsOfEntries) {
  FabricOptions to_answer = node_options("expert-0", listen());
  to_answer.geometry = protocol::LinkGeometry::make(3, 5, 2, 48, 48, protocol::Combine::kPreReduce);
  FabricOptions to_dispatch = to_answer;
  to_dispatch.self = node_options("attention-0").self;
  to_dispatch.listen = "";
  open(to_dispatch, to_answer);
  uint64_t sequence = 0, entry_sum = 0, row_sum = 0;
  for (const uint32_t slot : {0u, 5u}) {
    for (uint32_t rows = 0; rows <= 5; ++rows) {
      for (const uint32_t entries : {rows, 2 * rows}) {
        MessageHeader header =
            make_header(attention, to_expert, slot, true, ++sequence, rows, entries);
        send(attention, to_expert, header);
        expect(expert, to_attention, header);  // Digests cover the weights.
        header = make_header(expert, to_attention, slot, false, sequence, rows, 0);
        send(expert, to_attention, header);
        expect(attention, to_expert, header);
        if (HasFatalFailure()) return;
        entry_sum += entries;
        row_sum += rows;
      }
    }
  }
  EXPECT_EQ(
      attention.fabric->counters().bytes_sent,
      sequence * sizeof(MessageHeader) + entry_sum * (sizeof(protocol::Entry) + 4) + row_sum * 48);
  MessageHeader header = make_header(attention, to_expert, 0, true, ++sequence, 3, 2);
  send(attention, to_expert, header);
  EXPECT_EQ(pump_for({&attention, &expert}, expert, EventKind::kClosed).code,
            StatusCode::kDataLoss);
  EXPECT_NE(expert.fabric->close_reason(to_attention).find("header.row_count is 3"),
            std::string::npos)
      << expert.fabric->close_reason(to_attention);
}

TEST_P(FabricConformance, DispatchesAndAnswersMayHaveRowsOfTheirOwn) {
  FabricOptions to_answer = node_options("expert-0", listen());
  to_answer.geometry = protocol::LinkGeometry::make(3, 5, 2, 32, 48);
  to_answer.dispatch_dtype = 3;
  FabricOptions to_dispatch = to_answer;
  to_dispatch.self = node_options("attention-0").self;
  to_dispatch.listen = "";
  open(to_dispatch, to_answer);
  const auto message = [&](Node& from, LinkId link, bool dispatch, uint64_t sequence,
                           uint8_t dtype) {
    MessageHeader header = make_header(from, link, 1, dispatch, sequence, 3, dispatch ? 4 : 0);
    header.dtype = dtype;
    return header;
  };
  MessageHeader header = message(attention, to_expert, true, 1, 3);
  send(attention, to_expert, header);
  expect(expert, to_attention, header);
  header = message(expert, to_attention, false, 1, kDtype);
  send(expert, to_attention, header);
  expect(attention, to_expert, header);
  send(attention, to_expert, message(attention, to_expert, true, 2, kDtype));
  EXPECT_EQ(pump_for({&attention, &expert}, expert, EventKind::kClosed).code,
            StatusCode::kDataLoss);
  EXPECT_NE(expert.fabric->close_reason(to_attention).find("header.dtype is 1, allowed: 3"),
            std::string::npos)
      << expert.fabric->close_reason(to_attention);
}

TEST_P(FabricConformance, CarriesRefusals) {
  open();
  MessageHeader header = make_header(attention, to_expert, 4, true, 1, 2, 3);
  send(attention, to_expert, header);
  expect(expert, to_attention, header);
  header = make_header(expert, to_attention, 4, false, 1, 0, 0);
  header.kind = MessageKind::kRefusal;
  header.refusal = protocol::Refusal::kStaleMap;
  send(expert, to_attention, header);
  expect(attention, to_expert, header);
}

TEST_P(FabricConformance, JoinsManyNodesWithManyNodes) {
  std::vector<Node> attentions, experts;
  for (int i = 0; i < 4; ++i)
    attentions.push_back(make(node_options(fmt::format("attention-{}", i))));
  for (int i = 0; i < 3; ++i) {
    experts.push_back(make(node_options(fmt::format("expert-{}", i), listen())));
  }
  const auto poll_all = [&] {
    for (Node& node : attentions) node.poll();
    for (Node& node : experts) node.poll();
  };
  std::vector<std::map<LinkId, uint64_t>> sent(attentions.size());
  for (Node& a : attentions) {
    for (Node& e : experts) ASSERT_TRUE(a.fabric->connect(e.fabric->address(), kKey).ok());
  }
  size_t answers = 0;
  const Nanos end = monotonic_now() + 30 * kSecond;
  while (answers < attentions.size() * experts.size() && monotonic_now() < end) {
    poll_all();
    for (size_t i = 0; i < attentions.size(); ++i) {
      Node& a = attentions[i];
      for (const FabricEvent& event : std::exchange(a.events, {})) {
        ASSERT_NE(event.kind, EventKind::kClosed) << a.fabric->close_reason(event.link);
        if (event.kind == EventKind::kOpened) {
          // The sequence names sender and receiver: a message on a wrong link would show.
          const std::string name = a.fabric->peer(event.link).name;
          sent[i][event.link] = 10 * (i + 1) + static_cast<uint64_t>(name.back() - '0');
          send(a, event.link, make_header(a, event.link, 1, true, sent[i][event.link], 3, 4));
        } else {
          EXPECT_EQ(a.fabric->recv_header(event.link, 1).sequence, sent[i][event.link]);
          ++answers;
        }
      }
    }
    for (size_t i = 0; i < experts.size(); ++i) {
      Node& e = experts[i];
      for (const FabricEvent& event : std::exchange(e.events, {})) {
        ASSERT_NE(event.kind, EventKind::kClosed) << e.fabric->close_reason(event.link);
        if (event.kind != EventKind::kMessage) continue;
        const MessageHeader& header = e.fabric->recv_header(event.link, 1);
        EXPECT_EQ(header.sequence % 10, i);
        EXPECT_EQ(e.fabric->peer(event.link).name,
                  fmt::format("attention-{}", header.sequence / 10 - 1));
        send(e, event.link, make_header(e, event.link, 1, false, header.sequence, 4, 0));
      }
    }
  }
  EXPECT_EQ(answers, attentions.size() * experts.size());
}

TEST_P(FabricConformance, SharedMemoryIsSharedAndNothingIsCopied) {
  open();
  exchange(2, 1, 5, 10);
  if (is_backend("tcp"))
    return;  // Small payloads are read along with their header and then copied.
  EXPECT_EQ(attention.fabric->counters().bytes_copied, 0u);
  EXPECT_EQ(expert.fabric->counters().bytes_copied, 0u);
  if (is_remote()) return;
  for (uint32_t slot = 0; slot < attention.options.geometry.slot_count(); ++slot) {
    std::byte* ours = attention.fabric->send_slot(to_expert, slot);
    const std::byte* theirs = expert.fabric->recv_slot(to_attention, slot);
    if (std::string(GetParam().backend) == "local") {
      EXPECT_EQ(ours, theirs);
    }
    const auto mark = static_cast<std::byte>(17 + slot);
    ours[attention.options.geometry.dispatch.slot_bytes() - 1] = mark;
    EXPECT_EQ(theirs[attention.options.geometry.dispatch.slot_bytes() - 1], mark);
  }
}

TEST_P(FabricConformance, ReportsWhatWasSentBeforeTheEnd) {
  if (GetParam().fault) GTEST_SKIP() << "the decorator may lose messages in flight";
  open();
  for (uint32_t slot = 0; slot < 6; ++slot) {
    send(attention, to_expert, make_header(attention, to_expert, slot, true, slot + 1, 5, 10));
  }
  attention.fabric.reset();
  ASSERT_TRUE(pump({&expert}, [&] { return expert.events.size() == 7; }));
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(expert.events[i].kind, EventKind::kMessage);
  EXPECT_EQ(expert.events[6].kind, EventKind::kClosed);
  EXPECT_EQ(expert.events[6].code, StatusCode::kUnavailable);
}

TEST_P(FabricConformance, SlotsOfAClosedLinkLiveUntilTheNextPoll) {
  open();
  exchange(0, 1, 5, 10);
  expert.fabric.reset();
  pump_for({&attention}, attention, EventKind::kClosed);
  EXPECT_EQ(attention.fabric->recv_header(to_expert, 0).sequence, 1u);
  EXPECT_EQ(protocol::header_of(attention.fabric->recv_slot(to_expert, 0)).sequence, 1u);
  attention.fabric->send_slot(to_expert, 0)[0] = std::byte{1};
  attention.fabric->post(to_expert, 0);  // Goes nowhere.
  EXPECT_NE(attention.fabric->close_reason(to_expert), "");
  EXPECT_EQ(attention.fabric->peer(to_expert).name, "expert-0");
}

TEST_P(FabricConformance, StaleWritesNeverReachALaterLink) {
  FabricOptions one_link = node_options("expert-0", listen());
  one_link.links_max = 1;  // So that a later link takes the same place.
  open(node_options("attention-0"), one_link);
  const auto& geometry = attention.options.geometry;
  const size_t bytes = geometry.slot_count() * geometry.dispatch.slot_bytes();
  std::byte* stale = nullptr;
  if (!is_remote()) {
    // A second mapping of the same pages, as a peer could keep it.
    void* copy = ::mremap(attention.fabric->send_slot(to_expert, 0), 0, bytes, MREMAP_MAYMOVE);
    ASSERT_NE(copy, MAP_FAILED);
    stale = static_cast<std::byte*>(copy);
  }
  // A message that the old link has sent, and that nobody has taken yet.
  send(attention, to_expert, make_header(attention, to_expert, 0, true, 77, 5, 10));
  expert.fabric->close(to_attention);
  pump_for({&attention, &expert}, attention, EventKind::kClosed);
  link();
  exchange(0, 100, 1, 1);
  if (stale != nullptr) std::memset(stale, 0xee, bytes);
  for (int i = 0; i < 20; ++i) {
    attention.poll();
    expert.poll();
  }
  EXPECT_TRUE(attention.events.empty());
  EXPECT_TRUE(expert.events.empty());
  EXPECT_EQ(protocol::header_of(expert.fabric->recv_slot(to_attention, 0)).sequence, 100u);
  if (stale != nullptr) {
    const std::byte* slots = expert.fabric->recv_slot(to_attention, 0);
    EXPECT_EQ(std::count(slots, slots + bytes, std::byte{0xee}) * 100 / static_cast<long>(bytes),
              0);
    ::munmap(stale, bytes);
  }
}

TEST_P(FabricConformance, ANewLifeOfANodeIsANewLink) {
  open();
  exchange(0, 1, 2, 2);
  const LinkId old = to_attention;
  attention.fabric.reset();
  const FabricEvent closed = pump_for({&expert}, expert, EventKind::kClosed);
  EXPECT_EQ(closed.link, old);
  EXPECT_EQ(closed.code, StatusCode::kUnavailable);
  attention = make(node_options("attention-0"));
  link();
  EXPECT_NE(to_attention, old);
  EXPECT_EQ(expert.fabric->peer(to_attention).incarnation, attention.options.self.incarnation);
  exchange(0, 1, 2, 2);
  expert.fabric->close(old);  // Long gone: ignored.
  exchange(1, 2, 2, 2);
}

TEST_P(FabricConformance, ConnectingToNobodyFails) {
  expert = make(node_options("expert-0", listen()));
  const std::string address = expert.fabric->address();
  expert.fabric.reset();
  attention = make(node_options("attention-0"));
  const auto id = attention.fabric->connect(address, kKey);
  ASSERT_TRUE(id.ok()) << id.status();
  const FabricEvent event = pump_for({&attention}, attention, EventKind::kClosed);
  EXPECT_EQ(event.link, *id);
  EXPECT_EQ(event.code, StatusCode::kUnavailable);
}

TEST_P(FabricConformance, ConnectingToASilentListenerTimesOut) {
  expert = make(node_options("expert-0", listen()));  // Never polled.
  FabricOptions options = node_options("attention-0");
  options.connect_timeout = 30 * kMillisecond;
  attention = make(options);
  const Nanos start = monotonic_now();
  ASSERT_TRUE(attention.fabric->connect(expert.fabric->address(), kKey).ok());
  attention.fabric->wait(start + kSecond);
  EXPECT_EQ(pump_for({&attention}, attention, EventKind::kClosed).code,
            StatusCode::kDeadlineExceeded);
  EXPECT_GE(monotonic_now() - start, options.connect_timeout);
  EXPECT_LT(monotonic_now() - start, 5 * kSecond);  // The default timeout.
}

TEST_P(FabricConformance, MalformedAddressesAreRefusedAtOnce) {
  attention = make(node_options("attention-0"));
  EXPECT_EQ(attention.fabric->connect("", kKey).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(attention.fabric->connect(std::string(200, 'x'), kKey).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_P(FabricConformance, WakeEndsACurrentOrTheNextWait) {
  open();
  for (int i = 0; i < 3; ++i) attention.poll();
  attention.fabric->wake();
  const Nanos start = monotonic_now();
  attention.fabric->wait(start + 5 * kSecond);
  std::thread other;
  for (int i = 0; i < 5; ++i) {
    other = std::thread([&] {
      const timespec nap{.tv_sec = 0, .tv_nsec = 2'000'000};
      ::nanosleep(&nap, nullptr);
      attention.fabric->wake();
    });
    attention.fabric->wait(start + 5 * kSecond);
    other.join();
    attention.poll();
  }
  EXPECT_LT(monotonic_now() - start, 5 * kSecond);
}

TEST_P(FabricConformance, IdleWaitsKeepTheirDeadlineAndUseNoCpu) {
  open();
  exchange(0, 1, 1, 1);
  const auto cpu_now = [] {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return Nanos{now.tv_sec} * kSecond + now.tv_nsec;
  };
  const Nanos start = monotonic_now();
  const Nanos cpu_start = cpu_now();
  for (int i = 1; i <= 10; ++i) {
    const Nanos deadline = start + i * 20 * kMillisecond;
    while (monotonic_now() < deadline) {
      attention.fabric->wait(deadline);
      attention.poll();
    }
  }
  EXPECT_TRUE(attention.events.empty());
  EXPECT_GE(monotonic_now() - start, 200 * kMillisecond);
  EXPECT_LT(monotonic_now() - start, 600 * kMillisecond);
  EXPECT_LT(cpu_now() - cpu_start, 10 * kMillisecond);
}

TEST_P(FabricConformance, PulsesAreHeard) {
  open();
  pump({&attention, &expert}, [n = 0]() mutable { return ++n > 20; });
  const Nanos before = expert.fabric->last_heard(to_attention);
  pump({&attention, &expert}, [n = 0]() mutable { return ++n > 20; });
  EXPECT_EQ(expert.fabric->last_heard(to_attention), before) << "heard without a sound";
  {
    const PulseThread pulse(*attention.fabric, kMillisecond);
    EXPECT_TRUE(pump({&expert}, [&] { return expert.fabric->last_heard(to_attention) > before; }));
    const Nanos first = expert.fabric->last_heard(to_attention);
    EXPECT_TRUE(pump({&expert}, [&] { return expert.fabric->last_heard(to_attention) > first; }));
  }
  EXPECT_TRUE(expert.events.empty());
  exchange(0, 1, 3, 3);
}

TEST_P(FabricConformance, AMessageWithAnyFieldWrongEndsTheLink) {
  struct Case {
    const char* field;
    std::function<void(MessageHeader&)> break_it;
  };
  const Case cases[] = {
      {"magic", [](auto& h) { h.magic ^= 1; }},
      {"wire_version", [](auto& h) { h.wire_version = protocol::kWireVersion + 1; }},
      {"kind", [](auto& h) { h.kind = MessageKind::kAnswer; }},
      {"kind", [](auto& h) { h.kind = static_cast<MessageKind>(9); }},
      {"dtype", [](auto& h) { h.dtype = 2; }},
      {"incarnation", [](auto& h) { h.incarnation ^= 1; }},
      {"link", [](auto& h) { h.link ^= 1; }},
      {"slot", [](auto& h) { h.slot = 6; }},
      {"slot", [](auto& h) { h.slot = 0xffff; }},
      {"micro_batch", [](auto& h) { h.micro_batch = 3; }},
      {"micro_batch", [](auto& h) { h.micro_batch = 2; }},
      {"layer", [](auto& h) { h.layer = kLayers; }},
      {"fragment_count", [](auto& h) { h.fragment_count = 0; }},
      {"fragment", [](auto& h) { h.fragment = 1; }},
      {"row_count", [](auto& h) { h.row_count = 6; }},
      {"row_count", [](auto& h) { h.row_count = 0xffffffff; }},
      {"entry_count", [](auto& h) { h.entry_count = 11; }},
      {"entry_count", [](auto& h) { h.row_count = 0; }},
      {"entry_count", [](auto& h) { h.entry_count = 0xffffffff; }},
      {"row_bytes", [](auto& h) { h.row_bytes = 50; }},
      {"refusal", [](auto& h) { h.refusal = protocol::Refusal::kNotHeld; }},
  };
  open();
  for (const Case& c : cases) {
    SCOPED_TRACE(c.field);
    exchange(1, 1, 2, 3);
    const MessageHeader good = make_header(attention, to_expert, 1, true, 2, 2, 3);
    std::byte* slot = attention.fabric->send_slot(to_expert, 1);
    fill(slot, attention.options.geometry.dispatch, good);
    c.break_it(protocol::header_of(slot));
    attention.fabric->post(to_expert, 1);
    const FabricEvent closed = pump_for({&attention, &expert}, expert, EventKind::kClosed);
    EXPECT_EQ(closed.code, StatusCode::kDataLoss);
    EXPECT_NE(expert.fabric->close_reason(to_attention).find(std::string("header.") + c.field),
              std::string::npos)
        << expert.fabric->close_reason(to_attention);
    EXPECT_TRUE(expert.events.empty());
    EXPECT_EQ(pump_for({&attention, &expert}, attention, EventKind::kClosed).code,
              StatusCode::kUnavailable);
    link();
    if (HasFatalFailure()) return;
  }
}

TEST_P(FabricConformance, AMessageWithoutCreditEndsTheLink) {
  open();
  const MessageHeader header = make_header(attention, to_expert, 1, true, 1, 2, 3);
  send(attention, to_expert, header);
  expect(expert, to_attention, header);
  attention.fabric->post(to_expert, 1);  // Before the answer.
  EXPECT_EQ(pump_for({&attention, &expert}, expert, EventKind::kClosed).code,
            StatusCode::kDataLoss);
  pump_for({&attention, &expert}, attention, EventKind::kClosed);
  link();
  send(expert, to_attention, make_header(expert, to_attention, 1, false, 1, 2, 0));  // Unasked.
  EXPECT_EQ(pump_for({&attention, &expert}, attention, EventKind::kClosed).code,
            StatusCode::kDataLoss);
}

TEST_P(FabricConformance, LargeMessagesBothWaysAtOnceAndHeartbeatsBetween) {
  FabricOptions a = node_options("attention-0");
  a.geometry =
      protocol::LinkGeometry::make(2, 256, 1, 8192);  // 2 MiB a slot: no socket takes it whole.
  FabricOptions e = node_options("expert-0", listen());
  e.geometry = a.geometry;
  a.links_max = e.links_max = 1;
  open(a, e);
  const PulseThread attention_pulse(*attention.fabric, 50 * kMicrosecond);
  const PulseThread expert_pulse(*expert.fabric, 50 * kMicrosecond);
  for (uint64_t round = 1; round <= 4; ++round) {
    MessageHeader dispatch[4], answer[4];
    for (uint32_t slot = 0; slot < 4; ++slot) {
      dispatch[slot] = make_header(attention, to_expert, slot, true, round * 10 + slot, 256, 256);
      send(attention, to_expert, dispatch[slot]);
    }
    size_t answered = 0, returned = 0;
    ASSERT_TRUE(pump({&attention, &expert},
                     [&] {
                       FabricEvent event;
                       while (expert.take(EventKind::kMessage, event)) {
                         const auto& layout = a.geometry.dispatch;
                         EXPECT_EQ(digest(expert.fabric->recv_slot(to_attention, event.slot),
                                          layout, dispatch[event.slot]),
                                   expected_digest(layout, dispatch[event.slot]));
                         answer[event.slot] = make_header(expert, to_attention, event.slot, false,
                                                          round * 10 + event.slot, 256, 0);
                         send(expert, to_attention, answer[event.slot]);
                         ++answered;
                       }
                       while (attention.take(EventKind::kMessage, event)) {
                         const auto& layout = a.geometry.answer;
                         EXPECT_EQ(digest(attention.fabric->recv_slot(to_expert, event.slot),
                                          layout, answer[event.slot]),
                                   expected_digest(layout, answer[event.slot]));
                         ++returned;
                       }
                       return returned == 4;
                     }))
        << "answered " << answered << ", returned " << returned;
  }
  EXPECT_TRUE(expert.events.empty());
}

TEST_P(FabricConformance, MessagesAllocateNothing) {
  if (GetParam().fault) GTEST_SKIP() << "the decorator is for tests and may allocate";
  open();
  FabricEvent events[8];
  const auto await = [&](Node& node) {
    const Nanos end = monotonic_now() + 30 * kSecond;
    while (node.fabric->poll(events) == 0 && monotonic_now() < end) {
      node.fabric->wait(monotonic_now() + kMillisecond);
    }
  };
  uint64_t before = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    if (i == 100) before = allocations_of_this_thread();
    send(attention, to_expert, make_header(attention, to_expert, 1, true, i + 1, 5, 10));
    await(expert);
    send(expert, to_attention, make_header(expert, to_attention, 1, false, i + 1, 10, 0));
    await(attention);
    attention.fabric->pulse();
  }
  EXPECT_EQ(attention.fabric->counters().messages_received, 200u);
  EXPECT_EQ(allocations_of_this_thread(), before);
}

// --- Two threads, random traffic.

// How many dispatches, and as many answers.
uint64_t soak_messages() {
  const char* text = std::getenv("VOLLEY_TEST_MESSAGES");
  return text == nullptr ? 10'000 : std::strtoull(text, nullptr, 10);
}

// An expert node that answers everything: `rows` of the answer are drawn from the dispatch's
// sequence.
void answer_all(Node& node, const std::atomic<bool>& stop, std::atomic<uint64_t>& torn) {
  FabricEvent events[16];
  std::map<std::pair<LinkId, uint32_t>, uint64_t> last;
  const auto& geometry = node.options.geometry;
  while (!stop) {
    const size_t count = node.fabric->poll(events);
    for (size_t i = 0; i < count; ++i) {
      const auto& [kind, link, slot, code] = events[i];
      if (kind == EventKind::kClosed)
        std::erase_if(last, [&](auto& l) { return l.first.first == link; });
      if (kind != EventKind::kMessage) continue;
      const MessageHeader header = node.fabric->recv_header(link, slot);
      uint64_t& seen = last[{link, slot}];
      if (header.sequence <= seen) continue;  // A duplicate event; its slot is not ours any more.
      seen = header.sequence;
      const std::byte* content = node.fabric->recv_slot(link, slot);
      if (digest(content, geometry.dispatch, header) !=
          expected_digest(geometry.dispatch, header)) {
        ++torn;
      }
      fill(node.fabric->send_slot(link, slot), geometry.answer,
           make_header(node, link, slot, false, header.sequence, header.entry_count, 0));
      node.fabric->post(link, slot);
    }
    if (count == 0) node.fabric->wait(monotonic_now() + 5 * kSecond);
  }
}

TEST_P(FabricConformance, RandomTrafficIsNeitherLostNorTornNorInvented) {
  const uint64_t messages = soak_messages();
  const FaultPolicy rough{.seed = 42,
                          .delay_max = 40 * kMicrosecond,
                          .late_probability = 0.002,
                          .late_delay = kMillisecond,
                          .duplicate_probability = 0.05,
                          .link_failure_probability = 0.0005};
  attention = make(node_options("attention-0"), rough);
  std::vector<Node> experts;
  for (int i = 0; i < 2; ++i) {
    FaultPolicy policy = rough;
    policy.seed += static_cast<uint64_t>(i) + 1;
    experts.push_back(make(node_options(fmt::format("expert-{}", i), listen()), policy));
  }
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> torn{0};
  std::vector<std::thread> threads;
  for (Node& node : experts) {
    threads.emplace_back([&node, &stop, &torn] { answer_all(node, stop, torn); });
  }

  SplitMix64 random(7);
  const auto& geometry = attention.options.geometry;
  std::map<LinkId, size_t> expert_of;  // Open and connecting links.
  std::map<std::pair<LinkId, uint32_t>, MessageHeader>
      outstanding;  // Dispatches without an answer.
  uint64_t sequence = 0, answered = 0, duplicates = 0, lost = 0, failures = 0;
  const auto connect = [&](size_t index) {
    const auto id = attention.fabric->connect(experts[index].fabric->address(), kKey);
    ASSERT_TRUE(id.ok()) << id.status();
    expert_of[*id] = index;
  };
  const auto dispatch = [&](LinkId link, uint32_t slot) {
    const auto rows = static_cast<uint32_t>(random.below(geometry.dispatch.rows_max + 1));
    const auto entries =
        rows == 0
            ? 0
            : rows + static_cast<uint32_t>(random.below(geometry.dispatch.entries_max - rows + 1));
    const MessageHeader header =
        make_header(attention, link, slot, true, ++sequence, rows, entries);
    outstanding[{link, slot}] = header;
    send(attention, link, header);
  };
  for (size_t i = 0; i < experts.size(); ++i) connect(i);
  const Nanos end = monotonic_now() + 30 * kSecond + static_cast<Nanos>(messages) * kMillisecond;
  Nanos longest_wait = 0;
  FabricEvent events[16];
  while (answered < messages && monotonic_now() < end && !HasFailure()) {
    const size_t count = attention.fabric->poll(events);
    for (size_t i = 0; i < count; ++i) {
      const auto& [kind, link, slot, code] = events[i];
      if (kind == EventKind::kOpened) {
        for (uint32_t s = 0; s < geometry.slot_count(); ++s) dispatch(link, s);
      } else if (kind == EventKind::kClosed) {
        EXPECT_EQ(code, StatusCode::kUnavailable) << attention.fabric->close_reason(link);
        ++failures;
        lost += std::erase_if(outstanding, [&](auto& o) { return o.first.first == link; });
        const size_t index = expert_of[link];
        expert_of.erase(link);
        connect(index);
      } else {
        const MessageHeader header = attention.fabric->recv_header(link, slot);
        const auto found = outstanding.find({link, slot});
        if (found == outstanding.end() || found->second.sequence != header.sequence) {
          ++duplicates;
          continue;
        }
        EXPECT_EQ(header.row_count, found->second.entry_count);
        EXPECT_EQ(digest(attention.fabric->recv_slot(link, slot), geometry.answer, header),
                  expected_digest(geometry.answer, header));
        outstanding.erase(found);
        ++answered;
        dispatch(link, slot);
      }
    }
    if (count > 0) continue;
    const Nanos asleep = monotonic_now();
    attention.fabric->wait(asleep + 5 * kSecond);
    longest_wait = std::max(longest_wait, monotonic_now() - asleep);
  }
  stop = true;
  for (Node& node : experts) node.fabric->wake();
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(answered, messages);
  EXPECT_LT(longest_wait, 2 * kSecond) << "a wake-up was lost";
  EXPECT_EQ(torn, 0u);
  EXPECT_EQ(sequence, answered + outstanding.size() + lost);  // Lost: with a failed link, only.
  if (GetParam().fault) {
    EXPECT_GT(duplicates, 0u);
    EXPECT_GT(failures, 0u);
  } else {
    EXPECT_EQ(duplicates, 0u);
    EXPECT_EQ(failures, 0u);
  }
}

std::string name_of(const ::testing::TestParamInfo<Param>& param) {
  return std::string(param.param.fault ? "fault_" : "") + param.param.backend +
         (param.param.rails > 1 ? fmt::format("_{}_rails", param.param.rails) : "");
}

INSTANTIATE_TEST_SUITE_P(Backends, FabricConformance,
                         ::testing::Values(Param{"local", false}, Param{"shm", false},
                                           Param{"tcp", false}, Param{"rdma", false},
                                           Param{"rdma", false, 3}, Param{"local", true},
                                           Param{"shm", true}, Param{"tcp", true},
                                           Param{"rdma", true}),
                         name_of);

std::vector<Param> verbs_params() {
  if (rdma_devices().empty()) return {};
  return {Param{"verbs", false}, Param{"verbs", false, 2}, Param{"verbs", true}};
}
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FabricConformance);
INSTANTIATE_TEST_SUITE_P(Verbs, FabricConformance, ::testing::ValuesIn(verbs_params()), name_of);

}  // namespace
}  // namespace volley::transport
