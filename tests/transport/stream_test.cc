// Goal: the TCP parser and writer keep frames whole however the stream is cut, and addresses are
// read. Method: a stream of known frames in random pieces; a socket pair with a small buffer.

#include "../../src/transport/stream.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../../src/transport/tcp_address.h"
#include "volley/base/random.h"

namespace volley::transport {
namespace {

using protocol::MessageHeader;

constexpr auto kGeometry = protocol::LinkGeometry::make(2, 4, 2, 40);
constexpr protocol::SlotLayout kLayout = kGeometry.dispatch;

protocol::Expectation expectation() {
  return {.incarnation = 9,
          .link = 5,
          .layers = 2,
          .dtype = 1,
          .layout = kLayout,
          .micro_batches = kGeometry.micro_batches};
}

MessageHeader make_header(uint32_t slot, uint64_t sequence, uint32_t rows, uint32_t entries) {
  MessageHeader header;
  header.dtype = 1;
  header.incarnation = 9;
  header.sequence = sequence;
  header.link = 5;
  header.slot = static_cast<uint16_t>(slot);
  header.micro_batch = static_cast<uint16_t>(slot % 2);
  header.fragment_count = 1;
  header.row_count = rows;
  header.entry_count = entries;
  header.row_bytes = kLayout.row_bytes;
  return header;
}

template <class Struct>
void append(std::vector<std::byte>& stream, const Struct& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  stream.insert(stream.end(), bytes.begin(), bytes.end());
}

struct Receiver {
  Receiver() {
    inbox.open(expectation(), true);
    parser.open(&inbox, reinterpret_cast<std::byte*>(memory.data()));
  }
  const std::byte* slot(uint32_t index) const {
    return reinterpret_cast<const std::byte*>(memory.data()) + index * kLayout.slot_bytes();
  }
  // Hands `bytes` over in pieces of at most `piece`; calls on_message(slot) for each message.
  template <class OnMessage>
  Status feed(std::span<const std::byte> bytes, size_t piece, OnMessage on_message) {
    while (!bytes.empty()) {
      StreamParser::Buffers buffers;
      const size_t count = parser.buffers(buffers);
      EXPECT_GT(count, 0u);
      size_t moved = 0;
      for (size_t i = 0; i < count; ++i) {
        const size_t n = std::min({buffers[i].iov_len, piece - moved, bytes.size()});
        std::memcpy(buffers[i].iov_base, bytes.data(), n);
        bytes = bytes.subspan(n);
        moved += n;
      }
      auto progress = parser.advance(moved);
      for (; progress.ok() && *progress != StreamParser::Progress::kPartial;
           progress = parser.advance(0)) {
        if (*progress == StreamParser::Progress::kMessage) on_message(parser.slot());
        if (*progress == StreamParser::Progress::kHeartbeat) ++heartbeats;
      }
      if (!progress.ok()) return progress.status();
    }
    return ok_status();
  }
  std::vector<uint64_t> memory =
      std::vector<uint64_t>(kGeometry.slot_count() * kLayout.slot_bytes() / 8);
  Inbox inbox;
  StreamParser parser;
  int heartbeats = 0;
};

TEST(StreamParser, PutsEveryFrameInItsSlotHoweverItIsCut) {
  for (size_t piece : {1, 7, 63, 64, 65, 1000, 4096, 100'000}) {
    SCOPED_TRACE(piece);
    SplitMix64 random(piece);
    Receiver receiver;
    std::vector<std::byte> stream;
    std::vector<std::vector<std::byte>> payloads;
    for (uint64_t i = 0; i < 50; ++i) {
      const auto rows = static_cast<uint32_t>(random.below(kLayout.rows_max + 1));
      const auto entries = rows == 0 ? 0 : rows + static_cast<uint32_t>(random.below(rows + 1));
      append(stream, make_header(i % 4, i + 1, rows, entries));
      std::vector<std::byte> payload(entries * sizeof(protocol::Entry) + rows * kLayout.row_bytes);
      for (std::byte& byte : payload) byte = static_cast<std::byte>(random.next());
      stream.insert(stream.end(), payload.begin(), payload.end());
      payloads.push_back(std::move(payload));
      if (random.chance(0.3)) append(stream, Heartbeat{.incarnation = 9});
    }
    uint64_t received = 0;
    const Status status = receiver.feed(stream, piece, [&](uint32_t slot) {
      ASSERT_LT(received, payloads.size());
      const MessageHeader& header = receiver.inbox.header(slot);
      EXPECT_EQ(slot, received % 4);
      EXPECT_EQ(header.sequence, received + 1);
      const std::vector<std::byte>& payload = payloads[received++];
      const size_t entry_bytes = header.entry_count * sizeof(protocol::Entry);
      const std::byte* at = receiver.slot(slot);
      EXPECT_EQ(std::memcmp(at, &header, sizeof header), 0);
      const auto rows = payload.begin() + static_cast<ptrdiff_t>(entry_bytes);
      EXPECT_TRUE(std::equal(payload.begin(), rows, at + kLayout.entries_offset()));
      EXPECT_TRUE(std::equal(rows, payload.end(), at + kLayout.rows_offset()));
      receiver.inbox.grant(slot);
    });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(received, 50u);
    EXPECT_GT(receiver.heartbeats, 0);
  }
}

TEST(StreamParser, RefusesWhatIsNoFrameBeforeAnyPayload) {
  const auto refused = [](const auto& frame) {
    Receiver receiver;
    std::vector<std::byte> stream;
    append(stream, frame);
    const Status status = receiver.feed(stream, 64, [](uint32_t) { FAIL(); });
    for (const uint64_t word : receiver.memory) EXPECT_EQ(word, 0u);
    return status.code() == StatusCode::kDataLoss;
  };
  MessageHeader header = make_header(0, 1, 4, 8);
  header.slot = 60'000;
  EXPECT_TRUE(refused(header));
  header = make_header(0, 1, 0xffffffff, 8);
  EXPECT_TRUE(refused(header));
  header = make_header(0, 1, 4, 8);
  header.magic = 0;
  EXPECT_TRUE(refused(header));
  EXPECT_TRUE(refused(Heartbeat{.incarnation = 8}));
  EXPECT_TRUE(refused(Heartbeat{.wire_version = protocol::kWireVersion + 1, .incarnation = 9}));
  EXPECT_TRUE(refused(Heartbeat{.incarnation = 9, .reserved = {0, 0, 0, 0, 0, 1}}));
}

TEST(StreamParser, ASlotTakesOneMessageUntilItIsGrantedAgain) {
  Receiver receiver;
  std::vector<std::byte> stream;
  append(stream, make_header(2, 1, 0, 0));
  int messages = 0;
  EXPECT_TRUE(receiver.feed(stream, 64, [&](uint32_t) { ++messages; }).ok());
  EXPECT_EQ(receiver.feed(stream, 64, [&](uint32_t) { ++messages; }).code(), StatusCode::kDataLoss);
  EXPECT_EQ(messages, 1);
}

class StreamWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    ours = UniqueFd(pair[0]);
    theirs = UniqueFd(pair[1]);
    const int small = 8192;
    ::setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    ASSERT_TRUE(waiter.init().ok());
    ASSERT_TRUE(waiter.add(ours.get(), EPOLLIN, 1).ok());
    writer.open(ours.get(), 9, &waiter, 1);
  }
  size_t read_all(std::vector<std::byte>& into) {
    size_t total = 0;
    std::byte buffer[3001];
    for (ssize_t n; (n = ::recv(theirs.get(), buffer, sizeof buffer, 0)) > 0;) {
      into.insert(into.end(), buffer, buffer + n);
      total += static_cast<size_t>(n);
    }
    return total;
  }
  bool writable_reported() {
    bool reported = false;
    waiter.fetch();
    waiter.drain([&](uint64_t, uint32_t events) { reported |= (events & EPOLLOUT) != 0; });
    return reported;
  }
  UniqueFd ours, theirs;
  Waiter waiter;
  StreamWriter writer;
};

TEST_F(StreamWriterTest, FramesStayWholeAndInOrderWhenTheSocketIsFull) {
  std::vector<std::vector<std::byte>> frames;
  std::vector<std::byte> expected;
  for (int i = 0; i < 12; ++i) {
    frames.emplace_back(60'013, static_cast<std::byte>(i + 1));
    expected.insert(expected.end(), frames.back().begin(), frames.back().end());
  }
  for (auto& frame : frames) {
    writer.post({.parts = {iovec{frame.data(), 64}, iovec{frame.data() + 64, frame.size() - 64}}});
    writer.pulse();  // Skipped: the frame is larger than the buffer, so it is on its way.
  }
  std::vector<std::byte> received;
  for (int i = 0; i < 1000 && received.size() < expected.size(); ++i) {
    read_all(received);
    if (writable_reported()) writer.flush();
  }
  EXPECT_EQ(received, expected);
  EXPECT_FALSE(writable_reported()) << "EPOLLOUT is still asked for";
  writer.pulse();
  received.clear();
  read_all(received);
  const Heartbeat heartbeat{.incarnation = 9};
  ASSERT_EQ(received.size(), sizeof heartbeat);
  EXPECT_EQ(std::memcmp(received.data(), &heartbeat, sizeof heartbeat), 0);
}

TEST_F(StreamWriterTest, ABrokenConnectionEndsTheReadingSide) {
  theirs.reset();
  std::byte frame[64] = {};
  writer.post({.parts = {iovec{frame, sizeof frame}, iovec{}}});
  writer.post({.parts = {iovec{frame, sizeof frame}, iovec{}}});
  writer.pulse();
  EXPECT_EQ(::recv(ours.get(), frame, sizeof frame, 0), 0);
}

TEST(TcpAddress, ReadsNumbersAndLocalhost) {
  for (const char* text : {"127.0.0.1:4000", "[::1]:4000", "0.0.0.0:0", "[::]:65535"}) {
    const auto address = parse_tcp_address(text, false);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(tcp_address_text(*address), text);
  }
  const auto address = parse_tcp_address("localhost:80", false);
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(tcp_address_text(*address), "127.0.0.1:80");
}

TEST(TcpAddress, NamesWhatIsWrong) {
  for (const char* text :
       {"", "127.0.0.1", ":1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1",
        "::1:4000", "[::1", "no such host:1", "[]:1", "expert-0.example:4000"}) {
    const auto address = parse_tcp_address(text, false);
    EXPECT_EQ(address.status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_NE(message_of(address.status()).find(text), std::string::npos) << address.status();
  }
}

}  // namespace
}  // namespace volley::transport
