// `tcp`: links over TCP connections, one epoll set a node. Rows go from the send slot to the kernel
// and from the kernel to the receive slot; user space copies nothing but headers and what a read
// takes ahead of them (StreamParser).
//
// The slots are private memory of this process, so revocation is the end of the connection: only
// our own reads write to a receive slot, and they stop with it.

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>

#include "backends.h"
#include "fabric_base.h"
#include "stream.h"
#include "tcp_handshake.h"

namespace volley::transport {
namespace {

struct TcpLink : LinkCore {
  TcpCall call;  // While connecting.
  UniqueFd socket;
  Mapping memory;  // Of this place in the table; serves one link after the other.
  StreamParser parser;
  StreamWriter writer;
};

// Reads of one link before the others get their turn.
constexpr int kReadsAtOnce = 16;

// Up to so many links are read without asking epoll first: a read in vain costs no more than the
// question.
constexpr size_t kDirectLinksMax = 2;
// How long such a poll loop may go without asking for newcomers.
constexpr Nanos kFetchInterval = 50 * kMicrosecond;

constexpr uint64_t kLinkTag = uint64_t{2} << 32;  // | LinkId

class TcpFabric final : public FabricBase<TcpLink> {
 public:
  explicit TcpFabric(const FabricOptions& options)
      : FabricBase(options), callers_(waiter_, options_, 0) {}
  ~TcpFabric() override { close_all(); }

  Status init() {
    VOLLEY_RETURN_IF_ERROR(waiter_.init());
    for (TcpLink& link : links_) {
      VOLLEY_ASSIGN_OR_RETURN(link.memory, Mapping::allocate(options_.geometry.region_bytes()));
      // Page faults belong to the start of the node, not to its first messages.
      for (size_t i = 0; i < link.memory.bytes().size(); i += 4096) link.memory.bytes()[i] = {};
    }
    return options_.listen.empty() ? ok_status() : callers_.listen(address_);
  }

  const char* name() const override { return "tcp"; }

  Result<LinkId> connect(const std::string& address, const LinkKey& key) override {
    VOLLEY_ASSIGN_OR_RETURN(const TcpAddress target, parse_tcp_address(address, false));
    TcpLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    link->state = LinkState::kConnecting;
    link->connector = true;
    link->deadline = monotonic_now() + options_.connect_timeout;
    if (const Status status = start(*link, target, key); !status.ok()) fail(*link, status);
    return link->id;
  }

  void pulse() override {
    const std::lock_guard lock(pulse_mutex_);
    for (TcpLink* link : pulsed_) link->writer.pulse();
  }

 private:
  Status start(TcpLink& link, const TcpAddress& target, const LinkKey& key) {
    VOLLEY_RETURN_IF_ERROR(link.call.start(target, options_, key, {}, 0));
    return waiter_.add(link.call.fd(), EPOLLIN | EPOLLOUT, kLinkTag | link.id.value);
  }

  Status continue_handshake(TcpLink& link) {
    const bool sent_before = link.call.sent();
    VOLLEY_ASSIGN_OR_RETURN(const bool accepted, link.call.advance());
    if (link.call.sent() && !sent_before) {
      waiter_.modify(link.call.fd(), EPOLLIN, kLinkTag | link.id.value);
    }
    if (!accepted) return ok_status();
    link.socket = link.call.take_socket();
    const Welcome& welcome = link.call.welcome();
    run(link, identity_of(welcome), welcome.wire_link);
    return ok_status();
  }

  // Opens a link and takes the socket over, or leaves it for the refusal.
  Status admit(const TcpCallers::Greeting& greeting) {
    TcpLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    const auto wire_link = static_cast<uint32_t>(random_u64());
    const Welcome welcome = make_welcome(options_, wire_link);
    // The buffer of a new connection holds far more than a welcome.
    if (::send(greeting.socket.get(), &welcome, sizeof welcome, MSG_NOSIGNAL) != sizeof welcome) {
      return unavailable("sending the welcome: {}", errno_text(errno));
    }
    link->socket = std::move(greeting.socket);
    link->connector = false;
    waiter_.modify(link->socket.get(), EPOLLIN, kLinkTag | link->id.value);
    run(*link, identity_of(greeting.hello), wire_link);
    return ok_status();
  }

  void run(TcpLink& link, NodeIdentity peer, uint32_t wire_link) {
    const protocol::LinkGeometry& geometry = options_.geometry;
    std::byte* dispatch = link.memory.bytes().data();
    std::byte* answer = dispatch + geometry.slot_count() * geometry.dispatch.slot_bytes();
    link.send_base = link.connector ? dispatch : answer;
    link.recv_base = link.connector ? answer : dispatch;
    opened(link, std::move(peer), wire_link);
    link.parser.open(&link.inbox, link.recv_base);
    link.writer.open(link.socket.get(), options_.self.incarnation.value, &waiter_,
                     kLinkTag | link.id.value);
    const std::lock_guard lock(pulse_mutex_);
    pulsed_.push_back(&link);
  }

  void progress() override {
    // Its only writer is this thread.
    const bool direct = !pulsed_.empty() && pulsed_.size() <= kDirectLinksMax;
    if (direct) {
      for (TcpLink& link : links_) {
        if (link.state != LinkState::kOpen) continue;
        link.writer.flush();
        read(link);
      }
    }
    if (!direct || slept_ || waiter_.pending() || now_ - fetched_at_ >= kFetchInterval) {
      slept_ = false;
      fetched_at_ = now_;
      waiter_.fetch();
      waiter_.drain([this](uint64_t tag, uint32_t events) { handle(tag, events); });
    }
    callers_.expire(now_);
  }

  void handle(uint64_t tag, uint32_t events) {
    if (TcpCallers::owns(tag)) {
      return callers_.handle(
          tag, now_, [this](const TcpCallers::Greeting& greeting) { return admit(greeting); });
    }
    TcpLink* link = find(LinkId{static_cast<uint32_t>(tag)});
    if (link == nullptr) return;
    if (link->state == LinkState::kConnecting) {
      if (const Status status = continue_handshake(*link); !status.ok()) fail(*link, status);
      return;
    }
    if (link->state != LinkState::kOpen) return;
    if ((events & EPOLLOUT) != 0) link->writer.flush();
    if ((events & ~static_cast<uint32_t>(EPOLLOUT)) != 0) read(*link);
  }

  void read(TcpLink& link) {
    for (int i = 0; i < kReadsAtOnce; ++i) {
      StreamParser::Buffers buffers;
      const size_t count = link.parser.buffers(buffers);
      size_t wanted = 0;
      for (size_t k = 0; k < count; ++k) wanted += buffers[k].iov_len;
      const ssize_t got = ::readv(link.socket.get(), buffers.data(), static_cast<int>(count));
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
      // What the kernel had received before the end has been read by now.
      if (got < 0) return fail(link, unavailable("{}: {}", link.peer.name, errno_text(errno)));
      if (got == 0) return fail(link, unavailable("{} closed the link or died", link.peer.name));
      link.last_heard = now_;
      if (const Status status = parse(link, static_cast<size_t>(got)); !status.ok()) {
        return fail(link, status);
      }
      if (static_cast<size_t>(got) < wanted) return;  // Drained.
    }
  }

  Status parse(TcpLink& link, size_t bytes) {
    using Progress = StreamParser::Progress;
    const uint64_t copied = link.parser.bytes_copied();
    VOLLEY_ASSIGN_OR_RETURN(Progress progress, link.parser.advance(bytes));
    while (progress != Progress::kPartial) {
      if (progress == Progress::kMessage) received(link, link.parser.slot());
      VOLLEY_ASSIGN_OR_RETURN(progress, link.parser.advance(0));
    }
    counters_.bytes_copied += link.parser.bytes_copied() - copied;
    return ok_status();
  }

  void transmit(TcpLink& link, uint32_t slot, const MessageSizes& sizes) override {
    const protocol::SlotLayout& layout = send_layout(link);
    std::byte* base = link.send_base + slot * layout.slot_bytes();
    static_assert(sizeof(protocol::MessageHeader) == 64, "entries follow the header at once");
    link.writer.post({.parts = {iovec{base, layout.entries_offset() + sizes.entries},
                                iovec{base + layout.rows_offset(), sizes.rows}}});
  }

  bool input_ready() override { return waiter_.fetch(); }
  void set_sleeping(bool) override { slept_ = true; }

  Nanos idle_deadline() const override { return callers_.deadline(); }

  void disconnect(TcpLink& link) override {
    {
      const std::lock_guard lock(pulse_mutex_);
      std::erase(pulsed_, &link);
    }
    link.writer.close();
    link.call.reset();
    link.socket.reset();
  }
  void release(TcpLink&) override {}

  TcpCallers callers_;
  bool slept_ = true;
  Nanos fetched_at_ = 0;
  std::mutex pulse_mutex_;
  std::vector<TcpLink*> pulsed_;  // Open links, for pulse(). Guarded by pulse_mutex_.
};

}  // namespace

Result<std::unique_ptr<Fabric>> make_tcp_fabric(const FabricOptions& options) {
  auto fabric = std::make_unique<TcpFabric>(options);
  VOLLEY_RETURN_IF_ERROR(fabric->init());
  return fabric;
}

}  // namespace volley::transport
