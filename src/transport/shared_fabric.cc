// `local` and `shm`: links between nodes of one host through memory that both see. The send slot of
// one end is the receive slot of the other, so a message is one bit in a mask, and nothing is
// copied.
//
// The rendezvous is an abstract unix socket: it carries the handshake, on `shm` the descriptors of
// the region and of the two eventfds, and stays open as the proof of life: when either process
// ends, however it ends, the kernel closes it and the other end knows at once.
//
// `local` differs in two points: the peer must be this very process, and the region is handed over
// as an object instead of a descriptor, so that both ends have it at the same address.
//
// Revocation: a peer that has mapped a region may write to it for ever. A region therefore serves
// one link: on close both ends drop it, and the listener puts a fresh one into its reserve. What
// the old peer still writes lands in memory that nobody reads.

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <unordered_map>

#include "backends.h"
#include "fabric_base.h"
#include "region.h"
#include "unix_socket.h"

namespace volley::transport {
namespace {

enum class Reach { kProcess, kHost };

// Regions on their way from a listener to a connecting node of the same process.
class RegionExchange {
 public:
  static RegionExchange& instance() {
    static RegionExchange exchange;
    return exchange;
  }
  uint64_t offer(std::shared_ptr<Region> region) {
    const std::lock_guard lock(mutex_);
    const uint64_t token = random_u64();
    regions_[token] = std::move(region);
    return token;
  }
  std::shared_ptr<Region> take(uint64_t token) {
    const std::lock_guard lock(mutex_);
    auto node = regions_.extract(token);
    return node.empty() ? nullptr : std::move(node.mapped());
  }

 private:
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Region>> regions_;
};

struct SharedLink : LinkCore {
  UniqueFd socket;
  std::shared_ptr<Region> region;
  Direction* in = nullptr;
  Direction* out = nullptr;
  UniqueFd in_event;   // Rung by the peer while we sleep.
  UniqueFd out_event;  // Rung by us while the peer sleeps.
  uint64_t pulses_seen = 0;
  uint64_t token = 0;  // Of the exchange, until the peer has taken the region.
};

// A connection that has not said its hello yet.
struct Caller {
  UniqueFd socket;
  uint64_t serial = 0;
  Nanos deadline = 0;
};

constexpr size_t kCallersMax = 64;
// How long a busy poll loop may go without asking the kernel for bad news.
constexpr Nanos kFetchInterval = 50 * kMicrosecond;

constexpr uint64_t kListenerTag = 1;
constexpr uint64_t kCallerTag = uint64_t{1} << 32;    // | serial, 31 bits
constexpr uint64_t kLinkTag = uint64_t{2} << 32;      // | LinkId
constexpr uint64_t kDoorbellTag = uint64_t{3} << 32;  // | LinkId

class SharedFabric final : public FabricBase<SharedLink> {
 public:
  SharedFabric(const FabricOptions& options, Reach reach) : FabricBase(options), reach_(reach) {}
  ~SharedFabric() override { close_all(); }

  Status init() {
    VOLLEY_RETURN_IF_ERROR(waiter_.init());
    if (options_.listen.empty()) return ok_status();
    callers_.reserve(kCallersMax);
    reserve_.reserve(options_.links_max);
    for (uint32_t i = 0; i < options_.links_max; ++i) {
      VOLLEY_ASSIGN_OR_RETURN(std::shared_ptr<Region> region, Region::create(options_.geometry));
      reserve_.push_back(std::move(region));
    }
    address_ = invent_socket_name();
    VOLLEY_ASSIGN_OR_RETURN(listener_, listen_abstract(address_));
    return waiter_.add(listener_.get(), EPOLLIN, kListenerTag);
  }

  const char* name() const override { return reach_ == Reach::kProcess ? "local" : "shm"; }

  Result<LinkId> connect(const std::string& address, const LinkKey& key) override {
    Result<UniqueFd> socket = connect_abstract(address);
    if (socket.status().code() == StatusCode::kInvalidArgument) return socket.status();
    SharedLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    link->state = LinkState::kConnecting;
    link->connector = true;
    link->deadline = monotonic_now() + options_.connect_timeout;
    if (const Status sent = say_hello(*link, std::move(socket), key); !sent.ok()) fail(*link, sent);
    return link->id;
  }

  void pulse() override {
    const std::lock_guard lock(pulse_mutex_);
    for (SharedLink& link : links_) {
      if (link.out != nullptr) link.out->pulses.fetch_add(1, std::memory_order_relaxed);
    }
  }

 private:
  Status say_hello(SharedLink& link, Result<UniqueFd> socket, const LinkKey& key) {
    VOLLEY_ASSIGN_OR_RETURN(link.socket, std::move(socket));
    VOLLEY_RETURN_IF_ERROR(check_peer_process(link.socket.get(), reach_ == Reach::kProcess));
    VOLLEY_RETURN_IF_ERROR(waiter_.add(link.socket.get(), EPOLLIN, kLinkTag | link.id.value));
    const Hello hello = make_hello(options_, key);
    return send_packet(link.socket.get(), std::as_bytes(std::span(&hello, 1)), {});
  }

  void progress() override {
    for (SharedLink& link : links_) {
      if (link.state == LinkState::kOpen) take_messages(link);
    }
    // Messages need no system call; bad news and newcomers do, and may come a little later.
    if (slept_ || now_ - fetched_at_ >= kFetchInterval) {
      slept_ = false;
      fetched_at_ = now_;
      waiter_.fetch();
      waiter_.drain([this](uint64_t tag, uint32_t) { handle(tag); });
    }
    std::erase_if(callers_, [this](const Caller& caller) { return now_ >= caller.deadline; });
  }

  void handle(uint64_t tag) {
    if (tag == kListenerTag) {
      accept_callers();
    } else if ((tag >> 32) == (kCallerTag >> 32)) {
      hear_caller(static_cast<uint32_t>(tag));
    } else if ((tag >> 32) == (kLinkTag >> 32)) {
      SharedLink* link = find(LinkId{static_cast<uint32_t>(tag)});
      if (link == nullptr) return;
      if (link->state == LinkState::kConnecting)
        hear_welcome(*link);
      else if (link->state == LinkState::kOpen)
        hear_end(*link);
    }
  }

  // --- Listener.

  void accept_callers() {
    while (true) {
      UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!socket) return;
      if (callers_.size() == kCallersMax)
        continue;  // Hung up on: the number of strangers is bounded.
      const uint64_t serial = ++caller_serial_ & 0x7fffffff;
      if (!waiter_.add(socket.get(), EPOLLIN, kCallerTag | serial).ok()) return;
      callers_.push_back({std::move(socket), serial, now_ + options_.connect_timeout});
    }
  }

  void hear_caller(uint64_t serial) {
    const auto caller = std::find_if(callers_.begin(), callers_.end(),
                                     [&](const Caller& c) { return c.serial == serial; });
    if (caller == callers_.end()) return;
    Hello hello;
    const Result<Packet> packet =
        receive_packet(caller->socket.get(), std::as_writable_bytes(std::span(&hello, 1)));
    if (packet.ok() && packet->nothing) return;
    UniqueFd socket = std::move(caller->socket);
    waiter_.remove(socket.get());
    callers_.erase(caller);
    if (!packet.ok() || packet->bytes == 0) return;
    const Status verdict = admit(socket, hello, packet->bytes);
    if (verdict.ok()) return;
    const Welcome refusal = make_refusal(options_, verdict);
    // A caller that is already gone does not need the reason.
    [[maybe_unused]] const Status sent =
        send_packet(socket.get(), std::as_bytes(std::span(&refusal, 1)), {});
  }

  // Opens a link and takes `socket` over, or leaves the socket for the refusal.
  Status admit(UniqueFd& socket, const Hello& hello, size_t bytes) {
    VOLLEY_RETURN_IF_ERROR(check_peer_process(socket.get(), reach_ == Reach::kProcess));
    if (bytes < 8) return data_loss("the hello has {} bytes", bytes);
    VOLLEY_RETURN_IF_ERROR(check_hello(hello, options_));
    if (bytes != sizeof hello) return data_loss("the hello has {} bytes", bytes);
    SharedLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    UniqueFd dispatch_event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    UniqueFd answer_event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!dispatch_event || !answer_event) {
      return resource_exhausted("eventfd: {}", errno_text(errno));
    }
    if (reserve_.empty()) VOLLEY_RETURN_IF_ERROR(replenish());
    const int socket_fd = socket.get();
    VOLLEY_RETURN_IF_ERROR(waiter_.add(socket_fd, EPOLLIN, kLinkTag | link->id.value));
    link->socket = std::move(socket);
    link->connector = false;
    link->region = std::move(reserve_.back());
    reserve_.pop_back();
    const auto wire_link = static_cast<uint32_t>(random_u64());
    Welcome welcome = make_welcome(options_, wire_link);
    const int descriptors[] = {link->region->memory(), dispatch_event.get(), answer_event.get()};
    if (reach_ == Reach::kProcess) {
      link->token = welcome.region = RegionExchange::instance().offer(link->region);
    }
    const size_t first = reach_ == Reach::kProcess ? 1 : 0;  // The region goes by the exchange.
    Status status = send_packet(socket_fd, std::as_bytes(std::span(&welcome, 1)),
                                std::span(descriptors).subspan(first));
    if (status.ok()) {
      status = attach(*link, std::move(dispatch_event), std::move(answer_event));
    }
    if (!status.ok()) {
      disconnect(*link);
      release(*link);
      return status;
    }
    opened(*link, identity_of(hello), wire_link);
    return ok_status();
  }

  Status replenish() {
    VOLLEY_ASSIGN_OR_RETURN(std::shared_ptr<Region> region, Region::create(options_.geometry));
    reserve_.push_back(std::move(region));
    return ok_status();
  }

  // --- Connecting side.

  void hear_welcome(SharedLink& link) {
    Welcome welcome;
    Result<Packet> packet =
        receive_packet(link.socket.get(), std::as_writable_bytes(std::span(&welcome, 1)));
    if (!packet.ok()) return fail(link, packet.status());
    if (packet->nothing) return;
    if (const Status status = accept_welcome(link, welcome, *packet); !status.ok()) {
      fail(link, status);
    }
  }

  Status accept_welcome(SharedLink& link, const Welcome& welcome, Packet& packet) {
    if (packet.bytes == 0) return unavailable("the listener hung up during the handshake");
    if (packet.bytes < 8) return data_loss("the welcome has {} bytes", packet.bytes);
    VOLLEY_RETURN_IF_ERROR(check_welcome(welcome));
    if (packet.bytes != sizeof welcome) return data_loss("the welcome has {} bytes", packet.bytes);
    auto* descriptor = packet.descriptors.data();
    if (reach_ == Reach::kProcess) {
      link.region = RegionExchange::instance().take(welcome.region);
      if (link.region == nullptr)
        return data_loss("the welcome names a region that does not exist");
    } else {
      VOLLEY_ASSIGN_OR_RETURN(link.region,
                              Region::adopt(std::move(*descriptor++), options_.geometry));
    }
    UniqueFd dispatch_event = std::move(*descriptor++);
    UniqueFd answer_event = std::move(*descriptor++);
    if (!dispatch_event || !answer_event) return data_loss("the welcome came without its eventfds");
    VOLLEY_RETURN_IF_ERROR(attach(link, std::move(dispatch_event), std::move(answer_event)));
    opened(link, identity_of(welcome), welcome.wire_link);
    return ok_status();
  }

  // --- Both sides.

  Status attach(SharedLink& link, UniqueFd dispatch_event, UniqueFd answer_event) {
    Region& region = *link.region;
    link.in_event = std::move(link.connector ? answer_event : dispatch_event);
    link.out_event = std::move(link.connector ? dispatch_event : answer_event);
    // Edge triggered: every ring is an event of its own and nobody has to read the counter down.
    VOLLEY_RETURN_IF_ERROR(
        waiter_.add(link.in_event.get(), EPOLLIN | EPOLLET, kDoorbellTag | link.id.value));
    link.in = link.connector ? &region.answer() : &region.dispatch();
    link.send_base = link.connector ? region.dispatch_slots() : region.answer_slots();
    link.recv_base = link.connector ? region.answer_slots() : region.dispatch_slots();
    link.pulses_seen = 0;
    const std::lock_guard lock(pulse_mutex_);
    link.out = link.connector ? &region.dispatch() : &region.answer();
    return ok_status();
  }

  void take_messages(SharedLink& link) {
    const uint64_t pulses = link.in->pulses.load(std::memory_order_relaxed);
    if (pulses != link.pulses_seen) {
      link.pulses_seen = pulses;
      link.last_heard = now_;
    }
    if (link.in->pending.load(std::memory_order_relaxed) == 0) return;
    uint64_t slots = link.in->pending.exchange(0, std::memory_order_acquire);
    slots &= (uint64_t{1} << options_.geometry.slot_count()) - 1;
    for (; slots != 0; slots &= slots - 1) {
      const auto slot = static_cast<uint32_t>(std::countr_zero(slots));
      // The copy is what gets checked and used: the peer may change the original meanwhile.
      protocol::MessageHeader header;
      std::memcpy(&header, link.recv_base + slot * recv_layout(link).slot_bytes(), sizeof header);
      if (const Status status = link.inbox.admit(header, slot); !status.ok()) {
        return fail(link, status);
      }
      received(link, slot);
    }
  }

  void transmit(SharedLink& link, uint32_t slot, const MessageSizes&) override {
    // Sequentially consistent with the consumer's `sleeping`: either it sees the bit, or we see
    // that it sleeps. The exchange lets one sleep cost one ring.
    link.out->pending.fetch_or(uint64_t{1} << slot);
    if (link.out->sleeping.load() == 0 || link.out->sleeping.exchange(0) == 0) return;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(link.out_event.get(), &one, sizeof one);
  }

  // An open link's socket carries nothing more: it is readable because the peer is gone.
  void hear_end(SharedLink& link) {
    std::byte byte;
    const Result<Packet> packet = receive_packet(link.socket.get(), std::span(&byte, 1));
    if (packet.ok() && packet->nothing) return;
    take_messages(link);  // What it posted before its end is valid and comes before kClosed.
    if (packet.ok() && packet->bytes > 0) {
      return fail(link, data_loss("the peer sent a packet on an open link"));
    }
    fail(link, unavailable("{} closed the link or died", link.peer.name));
  }

  bool input_ready() override {
    for (const SharedLink& link : links_) {
      // Sequentially consistent: before a sleep this load comes after the store to `sleeping`.
      if (link.state == LinkState::kOpen && link.in->pending.load() != 0) return true;
    }
    return false;
  }

  void set_sleeping(bool sleeping) override {
    slept_ = true;
    for (SharedLink& link : links_) {
      if (link.state == LinkState::kOpen) link.in->sleeping.store(sleeping ? 1 : 0);
    }
  }

  Nanos idle_deadline() const override {
    Nanos deadline = std::numeric_limits<Nanos>::max();
    for (const Caller& caller : callers_) deadline = std::min(deadline, caller.deadline);
    return deadline;
  }

  void disconnect(SharedLink& link) override {
    {
      const std::lock_guard lock(pulse_mutex_);
      link.out = nullptr;
    }
    link.in = nullptr;
    // Closing takes a descriptor out of the epoll set only if nobody else holds it; the peer does
    // hold the eventfds.
    if (link.socket) waiter_.remove(link.socket.get());
    if (link.in_event) waiter_.remove(link.in_event.get());
    link.socket.reset();
    link.in_event.reset();
    link.out_event.reset();
    if (link.token != 0) RegionExchange::instance().take(std::exchange(link.token, 0));
  }

  void release(SharedLink& link) override {
    const bool abandoned = link.region != nullptr && !link.connector;
    link.region.reset();
    // A failure leaves the reserve one short; the next caller tries again and is told.
    if (abandoned) {
      [[maybe_unused]] const Status status = replenish();
    }
  }

  Reach reach_;
  UniqueFd listener_;
  std::vector<std::shared_ptr<Region>> reserve_;
  std::vector<Caller> callers_;
  uint64_t caller_serial_ = 0;
  bool slept_ = true;
  Nanos fetched_at_ = 0;
  std::mutex pulse_mutex_;  // Guards every SharedLink::out against pulse().
};

Result<std::unique_ptr<Fabric>> make_shared_fabric(const FabricOptions& options, Reach reach) {
  auto fabric = std::make_unique<SharedFabric>(options, reach);
  VOLLEY_RETURN_IF_ERROR(fabric->init());
  return fabric;
}

}  // namespace

Result<std::unique_ptr<Fabric>> make_local_fabric(const FabricOptions& options) {
  return make_shared_fabric(options, Reach::kProcess);
}
Result<std::unique_ptr<Fabric>> make_shm_fabric(const FabricOptions& options) {
  return make_shared_fabric(options, Reach::kHost);
}

}  // namespace volley::transport
