// `tcp`: links over TCP connections, one epoll set a node. Rows go from the send slot to the kernel
// and from the kernel to the receive slot; user space copies nothing but headers and what a read
// takes ahead of them (StreamParser).
//
// The slots are private memory of this process, so revocation is the end of the connection: only
// our own reads write to a receive slot, and they stop with it.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "backends.h"
#include "fabric_base.h"
#include "stream.h"
#include "tcp_address.h"

namespace volley::transport {
namespace {

struct TcpLink : LinkCore {
  UniqueFd socket;
  bool hello_sent = false;
  size_t welcome_bytes = 0;  // Received so far.
  Welcome welcome;
  Hello hello;
  Mapping memory;  // Of this place in the table; serves one link after the other.
  StreamParser parser;
  StreamWriter writer;
};

// A connection that has not said its whole hello, or that has been refused and shall read why.
struct Caller {
  UniqueFd socket;
  uint64_t serial = 0;
  Nanos deadline = 0;
  size_t bytes = 0;
  Hello hello;
  bool refused = false;
};

constexpr size_t kCallersMax = 64;
// Reads of one link before the others get their turn.
constexpr int kReadsAtOnce = 16;

// Up to so many links are read without asking epoll first: a read in vain costs no more than the
// question.
constexpr size_t kDirectLinksMax = 2;
// How long such a poll loop may go without asking for newcomers.
constexpr Nanos kFetchInterval = 50 * kMicrosecond;

constexpr uint64_t kListenerTag = 1;
constexpr uint64_t kCallerTag = uint64_t{1} << 32;  // | serial, 31 bits
constexpr uint64_t kLinkTag = uint64_t{2} << 32;    // | LinkId

void set_option(int fd, int level, int option, int value) {
  ::setsockopt(fd, level, option, &value, sizeof value);
}

class TcpFabric final : public FabricBase<TcpLink> {
 public:
  explicit TcpFabric(const FabricOptions& options) : FabricBase(options) {}
  ~TcpFabric() override { close_all(); }

  Status init() {
    VOLLEY_RETURN_IF_ERROR(waiter_.init());
    for (TcpLink& link : links_) {
      VOLLEY_ASSIGN_OR_RETURN(link.memory, Mapping::allocate(options_.geometry.region_bytes()));
      // Page faults belong to the start of the node, not to its first messages.
      for (size_t i = 0; i < link.memory.bytes().size(); i += 4096) link.memory.bytes()[i] = {};
    }
    callers_.reserve(kCallersMax);
    return options_.listen.empty() ? ok_status() : listen();
  }

  const char* name() const override { return "tcp"; }

  Result<LinkId> connect(const std::string& address, const LinkKey& key) override {
    VOLLEY_ASSIGN_OR_RETURN(const TcpAddress target, parse_tcp_address(address, false));
    TcpLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    link->state = LinkState::kConnecting;
    link->connector = true;
    link->deadline = monotonic_now() + options_.connect_timeout;
    link->hello_sent = false;
    link->welcome_bytes = 0;
    link->hello = make_hello(options_, key);
    if (const Status status = start(*link, target); !status.ok()) fail(*link, status);
    return link->id;
  }

  void pulse() override {
    const std::lock_guard lock(pulse_mutex_);
    for (TcpLink* link : pulsed_) link->writer.pulse();
  }

 private:
  Status listen() {
    VOLLEY_ASSIGN_OR_RETURN(TcpAddress address, parse_tcp_address(options_.listen, true));
    listener_ = UniqueFd(
        ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!listener_) return unavailable("{}: socket: {}", options_.listen, errno_text(errno));
    // A restarted node gets its port back although old connections linger.
    set_option(listener_.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address.storage),
               address.length) != 0 ||
        ::listen(listener_.get(), SOMAXCONN) != 0) {
      return unavailable("{}: {}", options_.listen, errno_text(errno));
    }
    address.length = sizeof address.storage;
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.length);
    address_ = tcp_address_text(address);
    return waiter_.add(listener_.get(), EPOLLIN, kListenerTag);
  }

  void tune(int fd) const {
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    // A host that vanished with unacknowledged data is found out here; one that is merely silent,
    // by last_heard().
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
               static_cast<int>(std::min<Nanos>(options_.connect_timeout / kMillisecond, 1 << 30)));
  }

  // --- Connecting side.

  Status start(TcpLink& link, const TcpAddress& target) {
    link.socket =
        UniqueFd(::socket(target.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!link.socket) return unavailable("socket: {}", errno_text(errno));
    tune(link.socket.get());
    if (::connect(link.socket.get(), reinterpret_cast<const sockaddr*>(&target.storage),
                  target.length) != 0 &&
        errno != EINPROGRESS) {
      return unavailable("connecting to {}: {}", tcp_address_text(target), errno_text(errno));
    }
    return waiter_.add(link.socket.get(), EPOLLIN | EPOLLOUT, kLinkTag | link.id.value);
  }

  Status continue_handshake(TcpLink& link) {
    const int fd = link.socket.get();
    if (!link.hello_sent) {
      int error = 0;
      socklen_t length = sizeof error;
      ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
      if (error != 0) return unavailable("connecting: {}", errno_text(error));
      const ssize_t sent = ::send(fd, &link.hello, sizeof link.hello, MSG_NOSIGNAL);
      if (sent < 0 && errno == EAGAIN) return ok_status();  // Still connecting.
      // The buffer of a new connection holds far more than a hello.
      if (sent != sizeof link.hello) return unavailable("sending the hello: {}", errno_text(errno));
      link.hello_sent = true;
      waiter_.modify(fd, EPOLLIN, kLinkTag | link.id.value);
    }
    auto* bytes = reinterpret_cast<std::byte*>(&link.welcome);
    // No further than the welcome: what follows belongs to the parser.
    const ssize_t received =
        ::recv(fd, bytes + link.welcome_bytes, sizeof link.welcome - link.welcome_bytes, 0);
    if (received < 0 && (errno == EAGAIN || errno == EINTR)) return ok_status();
    if (received < 0) return unavailable("waiting for the welcome: {}", errno_text(errno));
    if (received == 0) return unavailable("the listener hung up during the handshake");
    link.welcome_bytes += static_cast<size_t>(received);
    if (link.welcome_bytes < 8) return ok_status();
    // Another version's welcome may be shorter than ours.
    const bool foreign =
        link.welcome.magic != kWelcomeMagic || link.welcome.wire_version != protocol::kWireVersion;
    if (link.welcome_bytes < sizeof link.welcome && !foreign) return ok_status();
    VOLLEY_RETURN_IF_ERROR(check_welcome(link.welcome));
    run(link, identity_of(link.welcome), link.welcome.wire_link);
    return ok_status();
  }

  // --- Listener.

  void accept_callers() {
    while (true) {
      UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!socket) return;
      if (callers_.size() == kCallersMax)
        continue;  // Hung up on: the number of strangers is bounded.
      tune(socket.get());
      const uint64_t serial = ++caller_serial_ & 0x7fffffff;
      if (!waiter_.add(socket.get(), EPOLLIN, kCallerTag | serial).ok()) return;
      Caller& caller = callers_.emplace_back();
      caller.socket = std::move(socket);
      caller.serial = serial;
      caller.deadline = now_ + options_.connect_timeout;
    }
  }

  void hear_caller(uint64_t serial) {
    const auto caller = std::find_if(callers_.begin(), callers_.end(),
                                     [&](const Caller& c) { return c.serial == serial; });
    if (caller == callers_.end()) return;
    if (!hear(*caller)) callers_.erase(caller);
  }

  // False when the caller is done with: refused and gone, lost, or a link by now.
  bool hear(Caller& caller) {
    std::byte rest[256];
    std::byte* into =
        caller.refused ? rest : reinterpret_cast<std::byte*>(&caller.hello) + caller.bytes;
    const size_t wanted = caller.refused ? sizeof rest : sizeof caller.hello - caller.bytes;
    const ssize_t received = ::recv(caller.socket.get(), into, wanted, 0);
    if (received < 0) return errno == EAGAIN || errno == EINTR;
    if (received == 0) return false;
    // A connection closed with unread bytes is reset, and the reason might not arrive: a refused
    // caller is read until it hangs up or its time is over.
    if (caller.refused) return true;
    caller.bytes += static_cast<size_t>(received);
    if (caller.bytes < 8) return true;
    const bool foreign =
        caller.hello.magic != kHelloMagic || caller.hello.wire_version != protocol::kWireVersion;
    if (caller.bytes < sizeof caller.hello && !foreign) return true;
    const Status verdict = admit(caller);
    if (verdict.ok()) return false;
    const Welcome refusal = make_refusal(options_, verdict);
    ::send(caller.socket.get(), &refusal, sizeof refusal, MSG_NOSIGNAL);
    ::shutdown(caller.socket.get(), SHUT_WR);
    caller.refused = true;
    return true;
  }

  // Opens a link and takes the socket over, or leaves it for the refusal.
  Status admit(Caller& caller) {
    VOLLEY_RETURN_IF_ERROR(check_hello(caller.hello, options_));
    TcpLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    const auto wire_link = static_cast<uint32_t>(random_u64());
    const Welcome welcome = make_welcome(options_, wire_link);
    // The buffer of a new connection holds far more than a welcome.
    if (::send(caller.socket.get(), &welcome, sizeof welcome, MSG_NOSIGNAL) != sizeof welcome) {
      return unavailable("sending the welcome: {}", errno_text(errno));
    }
    link->socket = std::move(caller.socket);
    link->connector = false;
    waiter_.modify(link->socket.get(), EPOLLIN, kLinkTag | link->id.value);
    run(*link, identity_of(caller.hello), wire_link);
    return ok_status();
  }

  // --- Both sides.

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
    if (!direct || slept_ || now_ - fetched_at_ >= kFetchInterval) {
      slept_ = false;
      fetched_at_ = now_;
      waiter_.fetch();
      waiter_.drain([this](uint64_t tag, uint32_t events) { handle(tag, events); });
    }
    std::erase_if(callers_, [this](const Caller& caller) { return now_ >= caller.deadline; });
  }

  void handle(uint64_t tag, uint32_t events) {
    if (tag == kListenerTag) return accept_callers();
    if ((tag >> 32) == (kCallerTag >> 32)) return hear_caller(static_cast<uint32_t>(tag));
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

  Nanos idle_deadline() const override {
    Nanos deadline = std::numeric_limits<Nanos>::max();
    for (const Caller& caller : callers_) deadline = std::min(deadline, caller.deadline);
    return deadline;
  }

  void disconnect(TcpLink& link) override {
    {
      const std::lock_guard lock(pulse_mutex_);
      std::erase(pulsed_, &link);
    }
    link.writer.close();
    link.socket.reset();
  }
  void release(TcpLink&) override {}

  UniqueFd listener_;
  std::vector<Caller> callers_;
  uint64_t caller_serial_ = 0;
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
