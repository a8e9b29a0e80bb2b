// `rdma`: links over reliable-connected queue pairs. The send slot of one end is written into the
// receive slot of the other by the NIC; the last write of a message carries an immediate that names
// the slot, and its completion is the message's arrival. User space copies nothing.
//
// The rendezvous is a TCP connection: it carries hello, welcome and the two offers (queue pairs,
// addresses, keys), and stays open as the proof of life: when either process ends, however it ends,
// the kernel closes it and the other end knows at once. A host that vanishes is found by the
// retries of the queue pairs.
//
// All links of a port share one completion queue and one shared receive queue, deep enough for
// everything that can be outstanding. A link may have several queue pairs (rails), on one port or
// on several; large messages are spread over them.
//
// Connecting queue pairs may take the kernel a second, so a thread for each new link does it.
//
// Pulses go over a queue pair of their own with a completion queue of its own, because the thread
// that gives them must not touch the engine's.
//
// Protection: the memory and the queue pairs of a link are in a domain of their own, so that a peer
// reaches no other link, whatever keys it guesses. Revocation: the link's queue pairs are broken
// and its region deregistered; the next link of the same place gets a new domain, in which what is
// left of the old one has no rights. Broken queue pairs are kept until the NIC says that it takes
// no more of the shared receives for them.

#include "volley/transport/rdma_fabric.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>

#include "backends.h"
#include "fabric_base.h"
#include "rdma_wire.h"
#include "tcp_handshake.h"
#include "volley/base/clock.h"

namespace volley::transport {
namespace {

// The first page of a link's memory; slots follow.
struct ControlPage {
  alignas(64) std::atomic<uint64_t> pulses_in;   ///< Written by the peer's NIC.
  alignas(64) std::atomic<uint64_t> pulses_out;  ///< Read by ours.
};
constexpr size_t kControlBytes = 4096;
static_assert(sizeof(ControlPage) <= kControlBytes);

enum WorkKind : uint8_t { kData, kMarker, kPulse };

// Queue pairs of one link through which messages go.
struct Rail {
  std::unique_ptr<rdma::QueuePair> queue_pair;
  uint32_t rkey = 0;  // Of the peer's memory.
  // Work requests since the link opened; the send queue holds posted - completed.
  uint16_t posted = 0;
  uint16_t signalled = 0;  // `posted` at the last signalled request.
  uint16_t completed = 0;
};

// What has come of the message that a slot is receiving.
struct Partial {
  uint32_t parts = 0;  // Arrived.
  Immediate first;
};

// The queue pairs of a link while they are being connected: the thread's alone until `done`.
struct Joining {
  std::vector<std::unique_ptr<rdma::QueuePair>> queue_pairs;  // The rails', then the pulses'.
  std::vector<rdma::Endpoint> peers;
  std::vector<std::shared_ptr<rdma::ProtectionDomain>> domains;  // As RdmaLink.
  Status status;
  std::atomic<bool> done{false};
  std::thread thread;
};

struct RdmaLink : LinkCore {
  TcpCall call;  // While connecting.
  UniqueFd socket;
  std::unique_ptr<Joining> joining;
  RdmaOffer offer;  // Ours; goes out with the welcome.
  Mapping memory;   // Of this place in the table: ControlPage, incoming slots, outgoing slots.
  // By port; of one link. A broken queue pair outlives it and shares its domain.
  std::vector<std::shared_ptr<rdma::ProtectionDomain>> domains;
  std::vector<std::unique_ptr<rdma::MemoryRegion>> regions;
  std::vector<Rail> rails;
  std::array<Partial, kSlotsMax> partial{};
  uint32_t backlog = 0;  // Slots whose message waits for room in a send queue.
  uint64_t remote_slots = 0;
  uint64_t pulses_seen = 0;
  // Under the fabric's pulse mutex.
  std::unique_ptr<rdma::QueuePair> pulse_pair;
  uint32_t pulse_owner = 0;  // `id` of the link it was made for.
  uint64_t pulse_address = 0;
  uint32_t pulse_rkey = 0;
  uint32_t pulses_outstanding = 0;
  bool pulsing = false;  // The peer is ready for it.
  rdma::CompletionStatus pulse_failure = rdma::CompletionStatus::kOk;

  ControlPage& control() { return *reinterpret_cast<ControlPage*>(memory.bytes().data()); }
};

struct Port {
  std::shared_ptr<rdma::Device> device;
  std::unique_ptr<rdma::CompletionQueue> completions;
  std::unique_ptr<rdma::SharedReceiveQueue> receives;
  // Taken off the completion queue and not handled yet.
  std::array<rdma::Completion, 64> staged;
  size_t staged_count = 0;
};

// A broken queue pair on its way out.
struct DyingPair {
  std::shared_ptr<rdma::ProtectionDomain> domain;
  std::unique_ptr<rdma::QueuePair> queue_pair;
  uint32_t port = 0;
  Nanos deadline = 0;
};

// How long a busy poll loop may go without asking the kernel for bad news.
constexpr Nanos kFetchInterval = kMillisecond;
// How long the NIC may take to say that a broken queue pair is done with the shared receives.
constexpr Nanos kDyingTime = 200 * kMillisecond;
// How long closing a link waits until what was posted before has been acknowledged.
constexpr Nanos kFlushTime = 20 * kMillisecond;
constexpr Nanos kFlushSilence = 500 * kMillisecond;
// Unused entries between a message's entries and its rows are sent along up to so many bytes,
// because a second write costs as much.
constexpr size_t kGapMax = 256;
// A message is spread over the rails in parts of at least so many bytes.
constexpr size_t kPartMin = 64 << 10;
// A part is at most two writes: the rows, then header and entries with the immediate.
constexpr uint16_t kWritesPerPart = 2;
// Spare shared receives, for a peer that sends more than it may before it is found out.
constexpr uint32_t kSpareReceives = 64;
constexpr uint32_t kPulsesMax = 4;
// Completions handled before others get their turn.
constexpr int kBatchesAtOnce = 8;

constexpr std::byte kConfirm{0x06};

constexpr uint64_t kLinkTag = uint64_t{2} << 32;         // | LinkId
constexpr uint64_t kCompletionsTag = uint64_t{3} << 32;  // | port
constexpr uint64_t kAsyncTag = uint64_t{4} << 32;        // | port

class RdmaFabric final : public FabricBase<RdmaLink> {
 public:
  RdmaFabric(const FabricOptions& options, std::vector<std::shared_ptr<rdma::Device>> ports)
      : FabricBase(options), callers_(waiter_, options_, sizeof(RdmaOffer)) {
    for (auto& device : ports) ports_.emplace_back().device = std::move(device);
  }
  ~RdmaFabric() override {
    for (RdmaLink& link : links_) {
      if (link.state == LinkState::kOpen) flush(link);
    }
    closing_ = true;
    close_all();
    for (const auto& joining : abandoned_) joining->thread.join();
    abandoned_.clear();
    // Before the devices and queues, which are members of this class and not of its base.
    for (RdmaLink& link : links_) {
      link.regions.clear();
      link.domains.clear();
    }
    dying_.clear();
  }

  Status init() {
    VOLLEY_RETURN_IF_ERROR(waiter_.init());
    const uint32_t slots = options_.geometry.slot_count();
    send_depth_ = std::max<uint32_t>(4 * slots * kWritesPerPart, 64);
    const uint32_t receives =
        options_.links_max * slots * options_.rdma.queue_pairs + kSpareReceives;
    // All sends and all receives of all links may complete before anybody polls. Links that die
    // while new ones take their places count twice.
    const uint32_t completions =
        2 * (options_.links_max * options_.rdma.queue_pairs * send_depth_ + receives);
    for (size_t i = 0; i < ports_.size(); ++i) {
      VOLLEY_RETURN_IF_ERROR(
          annotate(open_port(i, completions, receives), ports_[i].device->attributes().name));
    }
    VOLLEY_ASSIGN_OR_RETURN(pulse_completions_, ports_[0].device->create_completion_queue(
                                                    2 * options_.links_max * kPulsesMax + 1));
    const size_t bytes = kControlBytes + options_.geometry.region_bytes();
    for (RdmaLink& link : links_) {
      VOLLEY_ASSIGN_OR_RETURN(link.memory, Mapping::allocate(bytes));
      // Page faults belong to the start of the node, not to its first messages.
      for (size_t i = 0; i < bytes; i += 4096) link.memory.bytes()[i] = {};
      link.rails.resize(rail_count());
      VOLLEY_RETURN_IF_ERROR(
          annotate(register_memory(link),
                   fmt::format("memory of {} links, {} bytes each", options_.links_max, bytes)));
    }
    dying_.reserve(links_.size() * (rail_count() + 1));
    return options_.listen.empty() ? ok_status() : callers_.listen(address_);
  }

  const char* name() const override { return "rdma"; }

  Result<LinkId> connect(const std::string& address, const LinkKey& key) override {
    VOLLEY_ASSIGN_OR_RETURN(const TcpAddress target, parse_tcp_address(address, false));
    RdmaLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    link->state = LinkState::kConnecting;
    link->connector = true;
    link->deadline = monotonic_now() + options_.connect_timeout;
    if (const Status status = start(*link, target, key); !status.ok()) fail(*link, status);
    return link->id;
  }

  // What was posted before the end shall still arrive.
  void close(LinkId id) override {
    RdmaLink* link = find(id);
    if (link != nullptr && link->state == LinkState::kOpen) flush(*link);
    FabricBase::close(id);
  }

  void pulse() override {
    const std::lock_guard lock(pulse_mutex_);
    take_pulse_completions();
    bool failed = false;
    for (RdmaLink& link : links_) {
      failed |= link.pulse_failure != rdma::CompletionStatus::kOk;
      if (!link.pulsing || link.pulses_outstanding == kPulsesMax) continue;
      ControlPage& control = link.control();
      control.pulses_out.fetch_add(1, std::memory_order_relaxed);
      // The NIC may read a newer count than this one: so much the better.
      const rdma::WriteRequest request{
          .local = reinterpret_cast<const std::byte*>(&control.pulses_out),
          .bytes = sizeof(uint64_t),
          .lkey = link.regions[0]->lkey(),
          .remote_address = link.pulse_address,
          .rkey = link.pulse_rkey,
          .work = {.owner = link.pulse_owner, .kind = kPulse},
          .immediate = std::nullopt,
          .signalled = true};
      if (link.pulse_pair->post({&request, 1}).ok()) ++link.pulses_outstanding;
    }
    if (!failed) return;
    pulse_failed_.store(true);
    waiter_.wake();
  }

 private:
  uint32_t rail_count() const {
    return static_cast<uint32_t>(ports_.size()) * options_.rdma.queue_pairs;
  }
  uint32_t port_of(uint32_t rail) const { return rail / options_.rdma.queue_pairs; }

  Status open_port(size_t index, uint32_t completions, uint32_t receives) {
    Port& port = ports_[index];
    VOLLEY_ASSIGN_OR_RETURN(port.completions, port.device->create_completion_queue(completions));
    VOLLEY_ASSIGN_OR_RETURN(port.receives, port.device->create_shared_receive_queue(receives));
    VOLLEY_RETURN_IF_ERROR(port.receives->post(receives));
    // Edge triggered: an event is taken once, also when nobody reads the completions at once.
    VOLLEY_RETURN_IF_ERROR(
        waiter_.add(port.completions->event_fd(), EPOLLIN | EPOLLET, kCompletionsTag | index));
    return waiter_.add(port.device->async_fd(), EPOLLIN, kAsyncTag | index);
  }

  Status register_memory(RdmaLink& link) {
    link.regions.clear();
    link.domains.clear();
    for (const Port& port : ports_) {
      VOLLEY_ASSIGN_OR_RETURN(auto domain, port.device->create_protection_domain());
      link.domains.push_back(std::move(domain));
      // One region for both directions: the peer that may write into the incoming slots could also
      // write into the outgoing ones, which are read by nobody but itself.
      VOLLEY_ASSIGN_OR_RETURN(auto region, port.device->register_memory(link.memory.bytes(), true,
                                                                        link.domains.back().get()));
      link.regions.push_back(std::move(region));
    }
    return ok_status();
  }

  // --- Handshake.

  // Makes the queue pairs and what the peer must know of them.
  Status prepare(RdmaLink& link) {
    VOLLEY_RETURN_IF_ERROR(broken_);
    RdmaOffer& offer = link.offer = {};
    if (link.regions.size() != ports_.size()) VOLLEY_RETURN_IF_ERROR(register_memory(link));
    std::byte* base = link.memory.bytes().data();
    std::memset(base, 0, kControlBytes);
    const size_t incoming = options_.geometry.slot_count() * recv_layout(link).slot_bytes();
    link.recv_base = base + kControlBytes;
    link.send_base = link.recv_base + incoming;
    link.partial.fill({});
    link.backlog = 0;
    link.pulses_seen = 0;
    offer.rails = rail_count();
    offer.slots_address = reinterpret_cast<uint64_t>(link.recv_base);
    offer.pulse_address = reinterpret_cast<uint64_t>(&link.control().pulses_in);
    for (uint32_t i = 0; i < rail_count(); ++i) {
      Port& port = ports_[port_of(i)];
      link.rails[i] = {};
      VOLLEY_ASSIGN_OR_RETURN(
          link.rails[i].queue_pair,
          port.device->create_queue_pair({.sends = send_depth_,
                                          .inline_bytes = kInlineBytes,
                                          .domain = link.domains[port_of(i)].get()},
                                         *port.completions, port.receives.get()));
      const rdma::Endpoint& endpoint = link.rails[i].queue_pair->endpoint();
      pairs_[key(port_of(i), endpoint.queue_pair)] = link.id;
      offer.rail[i] = make_rail_offer(endpoint, link.regions[port_of(i)]->rkey());
    }
    const std::lock_guard lock(pulse_mutex_);
    VOLLEY_ASSIGN_OR_RETURN(
        link.pulse_pair,
        ports_[0].device->create_queue_pair(
            {.sends = kPulsesMax, .inline_bytes = 0, .domain = link.domains[0].get()},
            *pulse_completions_, nullptr));
    link.pulse_owner = link.id.value;
    link.pulses_outstanding = 0;
    link.pulse_failure = rdma::CompletionStatus::kOk;
    offer.pulse = make_rail_offer(link.pulse_pair->endpoint(), link.regions[0]->rkey());
    return ok_status();
  }

  Status check_offer(const RdmaOffer& offer) const {
    if (offer.magic != kOfferMagic || offer.wire_version != protocol::kWireVersion ||
        offer.bytes != sizeof offer) {
      return data_loss("offer has magic {:#010x}, wire_version {}, bytes {}", offer.magic,
                       offer.wire_version, offer.bytes);
    }
    if (offer.rails != rail_count()) {
      return failed_precondition("rails are {} at one end and {} at the other", offer.rails,
                                 rail_count());
    }
    return ok_status();
  }

  // Starts to connect the queue pairs; take_joined() goes on. Errors: kResourceExhausted.
  Status start_joining(RdmaLink& link, const RdmaOffer& peer) {
    auto joining = std::make_unique<Joining>();
    joining->domains = link.domains;
    link.remote_slots = peer.slots_address;
    for (uint32_t i = 0; i < rail_count(); ++i) {
      link.rails[i].rkey = peer.rail[i].rkey;
      joining->peers.push_back(endpoint_of(peer.rail[i]));
      joining->queue_pairs.push_back(std::move(link.rails[i].queue_pair));
    }
    {
      const std::lock_guard lock(pulse_mutex_);
      link.pulse_address = peer.pulse_address;
      link.pulse_rkey = peer.pulse.rkey;
      joining->peers.push_back(endpoint_of(peer.pulse));
      joining->queue_pairs.push_back(std::move(link.pulse_pair));
    }
    link.joining = std::move(joining);
    try {
      link.joining->thread = std::thread([this, joining = link.joining.get()] { join(*joining); });
    } catch (const std::system_error& error) {
      restore_queue_pairs(link, std::move(link.joining));
      return resource_exhausted("a thread to connect queue pairs: {}", error.what());
    }
    return ok_status();
  }

  // The body of a joining thread.
  void join(Joining& joining) {
    for (size_t i = 0; i < joining.queue_pairs.size() && joining.status.ok(); ++i) {
      const bool pulses = i + 1 == joining.queue_pairs.size();
      joining.status = joining.queue_pairs[i]->connect(
          joining.peers[i], pulses ? options_.rdma.control : options_.rdma.data);
    }
    joining.done.store(true);
    joined_.store(true);
    waiter_.wake();
  }

  void restore_queue_pairs(RdmaLink& link, std::unique_ptr<Joining> joining) {
    for (uint32_t i = 0; i < rail_count(); ++i) {
      link.rails[i].queue_pair = std::move(joining->queue_pairs[i]);
    }
    const std::lock_guard lock(pulse_mutex_);
    link.pulse_pair = std::move(joining->queue_pairs.back());
  }

  void take_joined() {
    if (!joined_.load(std::memory_order_relaxed) || !joined_.exchange(false)) return;
    std::erase_if(abandoned_, [this](const std::unique_ptr<Joining>& joining) {
      if (!joining->done.load()) return false;
      joining->thread.join();
      for (uint32_t i = 0; i < rail_count(); ++i) {
        let_die(i, std::move(joining->queue_pairs[i]), joining->domains[port_of(i)]);
      }
      return true;
    });
    for (RdmaLink& link : links_) {
      if (link.joining == nullptr || !link.joining->done.load()) continue;
      auto joining = std::move(link.joining);
      joining->thread.join();
      const Status joined = joining->status.ok() ? broken_ : joining->status;
      restore_queue_pairs(link, std::move(joining));
      const Status status = !joined.ok()     ? joined
                            : link.connector ? confirm(link)
                                             : send_welcome(link);
      if (status.ok()) continue;
      if (link.connector) {
        fail(link, status);
      } else {
        callers_.refuse(std::move(link.socket), now_, status);
        FabricBase::close(link.id);
      }
    }
  }

  Status start(RdmaLink& link, const TcpAddress& target, const LinkKey& link_key) {
    VOLLEY_RETURN_IF_ERROR(prepare(link));
    VOLLEY_RETURN_IF_ERROR(link.call.start(
        target, options_, link_key, std::as_bytes(std::span(&link.offer, 1)), sizeof(RdmaOffer)));
    return waiter_.add(link.call.fd(), EPOLLIN | EPOLLOUT, kLinkTag | link.id.value);
  }

  Status continue_handshake(RdmaLink& link) {
    if (link.joining != nullptr) {
      return silent(link) ? ok_status() : unavailable("the listener hung up during the handshake");
    }
    const bool sent_before = link.call.sent();
    VOLLEY_ASSIGN_OR_RETURN(const bool accepted, link.call.advance());
    if (link.call.sent() && !sent_before) {
      waiter_.modify(link.call.fd(), EPOLLIN, kLinkTag | link.id.value);
    }
    if (!accepted) return ok_status();
    RdmaOffer offer;
    std::memcpy(&offer, link.call.answer().data(), sizeof offer);
    VOLLEY_RETURN_IF_ERROR(check_offer(offer));
    link.socket = link.call.take_socket();
    return start_joining(link, offer);
  }

  // Nothing has come on the socket, its end neither.
  static bool silent(const RdmaLink& link) {
    std::byte byte{};
    return ::recv(link.socket.get(), &byte, 1, MSG_PEEK) < 0 && (errno == EAGAIN || errno == EINTR);
  }

  // The connecting side is ready, and says so.
  Status confirm(RdmaLink& link) {
    if (::send(link.socket.get(), &kConfirm, 1, MSG_NOSIGNAL) != 1) {
      return unavailable("confirming the link: {}", errno_text(errno));
    }
    const Welcome& welcome = link.call.welcome();
    opened(link, identity_of(welcome), welcome.wire_link);
    start_pulses(link);
    return ok_status();
  }

  // Takes a link and the socket, or leaves the socket for the refusal.
  Status admit(const TcpCallers::Greeting& greeting) {
    RdmaOffer offer;
    std::memcpy(&offer, greeting.offer.data(), sizeof offer);
    VOLLEY_RETURN_IF_ERROR(check_offer(offer));
    RdmaLink* link = take_link();
    if (link == nullptr) return links_exhausted();
    link->connector = false;
    Status status = prepare(*link);
    if (status.ok()) status = start_joining(*link, offer);
    if (!status.ok()) {
      disconnect(*link);
      release(*link);
      return status;
    }
    link->state = LinkState::kAdmitting;
    link->deadline = now_ + options_.connect_timeout;
    link->peer = identity_of(greeting.hello);
    link->socket = std::move(greeting.socket);
    waiter_.modify(link->socket.get(), EPOLLIN, kLinkTag | link->id.value);
    return ok_status();
  }

  // The listening side is ready, and says so. Pulses start with the confirmation: until then the
  // peer's queue pairs may not be.
  Status send_welcome(RdmaLink& link) {
    const auto wire_link = static_cast<uint32_t>(random_u64());
    struct {
      Welcome welcome;
      RdmaOffer offer;
    } answer{make_welcome(options_, wire_link), link.offer};
    static_assert(sizeof answer == sizeof(Welcome) + sizeof(RdmaOffer));
    // The buffer of a new connection holds far more than this.
    if (::send(link.socket.get(), &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer) {
      return unavailable("sending the welcome: {}", errno_text(errno));
    }
    opened(link, link.peer, wire_link);
    return ok_status();
  }

  void start_pulses(RdmaLink& link) {
    const std::lock_guard lock(pulse_mutex_);
    link.pulsing = true;
  }

  // An open link's socket carries one byte, the connecting side's confirmation. Otherwise it is
  // readable because the peer is gone.
  void hear_socket(RdmaLink& link) {
    std::byte byte{};
    const ssize_t got = ::recv(link.socket.get(), &byte, 1, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got == 1 && byte == kConfirm && !link.connector) {
      const std::lock_guard lock(pulse_mutex_);
      if (!link.pulsing) {
        link.pulsing = true;
        return;
      }
    }
    // What has landed before is valid and comes before kClosed.
    while (take_completions()) {
    }
    if (link.state != LinkState::kOpen) return;
    if (got > 0) return fail(link, data_loss("the peer sent a byte on an open link"));
    fail(link, unavailable("{} closed the link or died", link.peer.name));
  }

  // --- Messages.

  void transmit(RdmaLink& link, uint32_t slot, const MessageSizes& sizes) override {
    if (link.backlog != 0 || !write_message(link, slot, sizes)) link.backlog |= 1u << slot;
  }

  // False, and nothing done, while a send queue has no room.
  bool write_message(RdmaLink& link, uint32_t slot, const MessageSizes& sizes) {
    const auto rails = static_cast<uint32_t>(link.rails.size());
    const uint32_t parts =
        static_cast<uint32_t>(std::clamp<size_t>(sizes.rows / kPartMin, 1, rails));
    // Small messages of different slots use different rails.
    const uint32_t first = slot % rails;
    for (uint32_t p = 0; p < parts; ++p) {
      if (room(link.rails[(first + p) % rails]) < kWritesPerPart) return false;
    }
    const protocol::SlotLayout& layout = send_layout(link);
    const std::byte* base = link.send_base + slot * layout.slot_bytes();
    const Immediate immediate{
        .slot = slot,
        .parts = parts,
        .sequence = static_cast<uint32_t>(protocol::header_of(base).sequence)};
    const size_t head = layout.entries_offset() + sizes.entries;
    // Parts are cut at cache lines.
    const size_t part_bytes = (sizes.rows / parts + 63) / 64 * 64;
    for (uint32_t p = 0; p < parts; ++p) {
      const size_t begin = std::min(p * part_bytes, sizes.rows);
      const size_t end = p + 1 == parts ? sizes.rows : std::min(begin + part_bytes, sizes.rows);
      const uint32_t rail = (first + p) % rails;
      const Piece rows{layout.rows_offset() + begin, end - begin};
      if (p != 0) {
        write_part(link, rail, slot, immediate, {}, rows);
      } else if (rows.bytes != 0 && layout.rows_offset() - head <= kGapMax) {
        write_part(link, rail, slot, immediate, {}, {0, rows.offset + rows.bytes});
      } else {
        write_part(link, rail, slot, immediate, rows, {0, head});
      }
      if (link.state != LinkState::kOpen) break;
    }
    return true;
  }

  struct Piece {
    size_t offset = 0;  // In the slot.
    size_t bytes = 0;
  };

  uint16_t room(const Rail& rail) const {
    return static_cast<uint16_t>(send_depth_ - static_cast<uint16_t>(rail.posted - rail.completed));
  }

  void write_part(RdmaLink& link, uint32_t rail_index, uint32_t slot, Immediate immediate,
                  Piece before, Piece last) {
    Rail& rail = link.rails[rail_index];
    std::array<rdma::WriteRequest, kWritesPerPart> requests;
    size_t count = 0;
    if (before.bytes != 0) requests[count++] = write_of(link, rail_index, slot, before);
    rdma::WriteRequest& ending = requests[count++];
    ending = write_of(link, rail_index, slot, last);
    ending.immediate = immediate.pack();
    ending.inlined = last.bytes <= rail.queue_pair->inline_bytes();
    rail.posted = static_cast<uint16_t>(rail.posted + count);
    // A completion frees the places of all requests up to it, so one in a while is enough.
    if (static_cast<uint16_t>(rail.posted - rail.signalled) >= send_depth_ / 4) {
      signal(rail, ending);
    }
    if (const Status status = rail.queue_pair->post(std::span(requests.data(), count));
        !status.ok()) {
      fail(link, annotate(status, link.peer.name));
    }
  }

  rdma::WriteRequest write_of(const RdmaLink& link, uint32_t rail, uint32_t slot,
                              Piece piece) const {
    const size_t offset = slot * send_layout(link).slot_bytes() + piece.offset;
    rdma::WriteRequest request;
    request.local = link.send_base + offset;
    request.bytes = static_cast<uint32_t>(piece.bytes);
    request.lkey = link.regions[port_of(rail)]->lkey();
    request.remote_address = link.remote_slots + offset;
    request.rkey = link.rails[rail].rkey;
    request.work = {.owner = link.id.value, .kind = kData, .rail = static_cast<uint8_t>(rail)};
    return request;
  }

  static void signal(Rail& rail, rdma::WriteRequest& request) {
    rail.signalled = rail.posted;
    request.signalled = true;
    request.work.index = rail.posted;
  }

  void write_backlog(RdmaLink& link) {
    while (link.backlog != 0 && link.state == LinkState::kOpen) {
      const auto slot = static_cast<uint32_t>(std::countr_zero(link.backlog));
      const protocol::SlotLayout& layout = send_layout(link);
      const auto& header = protocol::header_of(link.send_base + slot * layout.slot_bytes());
      if (!write_message(link, slot, message_sizes(header, layout))) return;
      link.backlog &= link.backlog - 1;
    }
  }

  // Waits, but not for long, until the peer's NIC has all that was posted. A peer that has not been
  // heard for a while is not waited for.
  void flush(RdmaLink& link) {
    const Nanos begin = monotonic_now();
    if (begin - link.last_heard > kFlushSilence) return;
    while (link.state == LinkState::kOpen && !flushed(link) &&
           monotonic_now() - begin < kFlushTime) {
      take_completions();
      std::this_thread::yield();
    }
  }

  bool flushed(RdmaLink& link) {
    write_backlog(link);
    bool done = link.backlog == 0;
    for (uint32_t i = 0; i < link.rails.size() && link.state == LinkState::kOpen; ++i) {
      Rail& rail = link.rails[i];
      if (rail.posted == rail.completed) continue;
      done = false;
      if (rail.posted != rail.signalled && room(rail) != 0) write_marker(link, i);
    }
    return done;
  }

  // Its completion says that all before it has been acknowledged. It writes the peer's pulse
  // counter once more, which says no more than that we live.
  void write_marker(RdmaLink& link, uint32_t rail_index) {
    Rail& rail = link.rails[rail_index];
    rdma::WriteRequest marker{
        .local = reinterpret_cast<const std::byte*>(&link.control().pulses_out),
        .bytes = sizeof(uint64_t),
        .lkey = link.regions[port_of(rail_index)]->lkey(),
        .remote_address = link.pulse_address,
        .rkey = rail.rkey,
        .work = {.owner = link.id.value, .kind = kMarker, .rail = static_cast<uint8_t>(rail_index)},
        .immediate = std::nullopt};
    ++rail.posted;
    signal(rail, marker);
    if (const Status status = rail.queue_pair->post({&marker, 1}); !status.ok()) fail(link, status);
  }

  // --- Progress.

  void progress() override {
    take_completions();
    for (RdmaLink& link : links_) {
      if (link.state == LinkState::kOpen) hear_pulses(link);
    }
    // Messages need no system call; bad news and newcomers do, and may come a little later.
    if (slept_ || now_ - fetched_at_ >= kFetchInterval) {
      slept_ = false;
      fetched_at_ = now_;
      waiter_.fetch();
      waiter_.drain([this](uint64_t tag, uint32_t) { handle(tag); });
    }
    take_joined();
    take_pulse_failures();
    callers_.expire(now_);
    for (RdmaLink& link : links_) {
      if (link.state == LinkState::kAdmitting && now_ >= link.deadline) FabricBase::close(link.id);
    }
    bury([this](const DyingPair& pair) { return now_ >= pair.deadline; });
  }

  void handle(uint64_t tag) {
    if (TcpCallers::owns(tag)) {
      return callers_.handle(
          tag, now_, [this](const TcpCallers::Greeting& greeting) { return admit(greeting); });
    }
    const auto low = static_cast<uint32_t>(tag);
    switch (tag & ~uint64_t{0xffffffff}) {
      case kCompletionsTag:
        return ports_[low].completions->clear_events();
      case kAsyncTag:
        return take_async_events(low);
      default:
        break;
    }
    RdmaLink* link = find(LinkId{low});
    if (link == nullptr) return;
    if (link->state == LinkState::kConnecting) {
      if (const Status status = continue_handshake(*link); !status.ok()) fail(*link, status);
    } else if (link->state == LinkState::kAdmitting) {
      if (!silent(*link)) FabricBase::close(link->id);
    } else if (link->state == LinkState::kOpen) {
      hear_socket(*link);
    }
  }

  void hear_pulses(RdmaLink& link) {
    const uint64_t pulses = link.control().pulses_in.load(std::memory_order_relaxed);
    if (pulses == link.pulses_seen) return;
    link.pulses_seen = pulses;
    link.last_heard = now_;
  }

  bool stage(Port& port) {
    if (port.staged_count != 0) return true;
    const Result<size_t> count = port.completions->poll(port.staged);
    if (!count.ok()) {
      fail_all(port, count.status());
      return false;
    }
    port.staged_count = *count;
    return *count != 0;
  }

  // True when there may be more.
  bool take_completions() {
    bool more = false;
    for (uint32_t i = 0; i < ports_.size(); ++i) {
      Port& port = ports_[i];
      for (int batch = 0; batch < kBatchesAtOnce && stage(port); ++batch) {
        uint32_t receives = 0;
        const size_t count = std::exchange(port.staged_count, 0);
        for (size_t k = 0; k < count; ++k) {
          const rdma::Completion& completion = port.staged[k];
          if (completion.received) {
            ++receives;
            take_receive(i, completion);
          } else {
            take_send(completion);
          }
        }
        if (receives != 0) {
          const Status status = port.receives->post(receives);
          if (!status.ok()) fail_all(port, status);
        }
        more |= batch + 1 == kBatchesAtOnce;
      }
    }
    return more;
  }

  // Destroys broken queue pairs, but not before what they have completed is out of the queue: a
  // later queue pair may get their numbers.
  template <class Done>
  void bury(Done done) {
    if (std::none_of(dying_.begin(), dying_.end(), done)) return;
    while (take_completions()) {
    }
    std::erase_if(dying_, done);
  }

  void take_receive(uint32_t port, const rdma::Completion& completion) {
    const auto pair = pairs_.find(key(port, completion.queue_pair));
    if (pair == pairs_.end()) return;
    RdmaLink* link = find(pair->second);
    if (link == nullptr || link->state != LinkState::kOpen) return;
    if (completion.status != rdma::CompletionStatus::kOk)
      return fail(*link, failure(*link, completion.status));
    const Immediate immediate = Immediate::unpack(completion.immediate);
    link->last_heard = now_;
    if (immediate.slot >= options_.geometry.slot_count() || immediate.parts > rail_count()) {
      return fail(*link, data_loss("immediate names slot {} and {} parts, allowed: below {} and {}",
                                   immediate.slot, immediate.parts, options_.geometry.slot_count(),
                                   rail_count() + 1));
    }
    Partial& partial = link->partial[immediate.slot];
    if (partial.parts++ == 0) {
      partial.first = immediate;
    } else if (partial.first.pack() != immediate.pack()) {
      return fail(*link, data_loss("slot {} got parts of the messages {} and {}", immediate.slot,
                                   partial.first.sequence, immediate.sequence));
    }
    if (partial.parts != immediate.parts) return;
    partial = {};
    // The copy is what gets checked and used: the peer could change the original meanwhile.
    protocol::MessageHeader header;
    std::memcpy(&header, link->recv_base + immediate.slot * recv_layout(*link).slot_bytes(),
                sizeof header);
    if (const Status status = link->inbox.admit(header, immediate.slot); !status.ok()) {
      return fail(*link, status);
    }
    if ((header.sequence & Immediate::kSequenceMask) != immediate.sequence) {
      return fail(*link, data_loss("slot {} holds sequence {}, its immediate says {} modulo 2^20",
                                   immediate.slot, header.sequence, immediate.sequence));
    }
    received(*link, immediate.slot);
  }

  void take_send(const rdma::Completion& completion) {
    RdmaLink* link = find(LinkId{completion.work.owner});
    if (link == nullptr || link->state != LinkState::kOpen) return;
    if (completion.status != rdma::CompletionStatus::kOk)
      return fail(*link, failure(*link, completion.status));
    link->rails[completion.work.rail].completed = completion.work.index;
    if (link->backlog != 0) write_backlog(*link);
  }

  // Under the pulse mutex.
  void take_pulse_completions() {
    std::array<rdma::Completion, 16> completions;
    while (true) {
      const Result<size_t> count = pulse_completions_->poll(completions);
      if (!count.ok()) {
        for (RdmaLink& link : links_) {
          if (std::exchange(link.pulsing, false)) {
            link.pulse_failure = rdma::CompletionStatus::kLocalError;
          }
        }
      }
      if (!count.ok() || *count == 0) return;
      for (size_t i = 0; i < *count; ++i) {
        const uint32_t owner = completions[i].work.owner;
        // Not find(): the link's state belongs to the engine thread.
        RdmaLink& link = links_[owner % links_.size()];
        if (link.pulse_owner != owner || !link.pulsing) continue;
        --link.pulses_outstanding;
        if (completions[i].status == rdma::CompletionStatus::kOk) continue;
        link.pulsing = false;
        link.pulse_failure = completions[i].status;
      }
    }
  }

  void take_pulse_failures() {
    if (!pulse_failed_.load(std::memory_order_relaxed) || !pulse_failed_.exchange(false)) return;
    for (RdmaLink& link : links_) {
      if (link.state != LinkState::kOpen) continue;
      rdma::CompletionStatus status;
      {
        const std::lock_guard lock(pulse_mutex_);
        status = link.pulse_failure;
      }
      if (status != rdma::CompletionStatus::kOk) fail(link, failure(link, status));
    }
  }

  void take_async_events(uint32_t port) {
    while (const auto event = ports_[port].device->next_event()) {
      switch (event->kind) {
        case rdma::AsyncEventKind::kLastReceiveReached:
          fail_pair(port, event->queue_pair);  // Broken, and nobody here has broken it.
          bury([&](const DyingPair& pair) {
            return pair.port == port && pair.queue_pair->endpoint().queue_pair == event->queue_pair;
          });
          break;
        case rdma::AsyncEventKind::kQueuePairError:
          fail_pair(port, event->queue_pair);
          break;
        case rdma::AsyncEventKind::kDeviceFatal:
          // Its descriptor may stay readable for ever.
          waiter_.remove(ports_[port].device->async_fd());
          return fail_all(ports_[port], unavailable("it has failed"));
        case rdma::AsyncEventKind::kQueueError:
          fail_all(ports_[port], unavailable("a shared queue has failed"));
          break;
        default:
          break;  // A port that comes and goes shows in retries.
      }
    }
  }

  void fail_pair(uint32_t port, uint32_t queue_pair) {
    const auto pair = pairs_.find(key(port, queue_pair));
    if (pair == pairs_.end()) return;
    const LinkId id = pair->second;
    while (take_completions()) {
    }
    RdmaLink* link = find(id);
    if (link != nullptr) fail(*link, unavailable("{}: its queue pair broke", link->peer.name));
  }

  static Status failure(const RdmaLink& link, rdma::CompletionStatus status) {
    return unavailable("{}: rdma write: {}", link.peer.name, completion_status_name(status));
  }

  void fail_all(const Port& port, const Status& why) {
    const Status status =
        unavailable("RDMA device {}: {}", port.device->attributes().name, message_of(why));
    for (RdmaLink& link : links_) fail(link, status);
    broken_ = status;
    waiter_.wake();  // It may have been found on the way to sleep.
  }

  bool input_ready() override {
    bool ready = false;
    for (Port& port : ports_) ready |= stage(port);
    return ready;
  }

  void set_sleeping(bool sleeping) override {
    slept_ = true;
    if (!sleeping) return;
    for (Port& port : ports_) {
      if (const Status status = port.completions->arm(); !status.ok()) fail_all(port, status);
    }
  }

  Nanos idle_deadline() const override {
    Nanos deadline = callers_.deadline();
    for (const DyingPair& pair : dying_) deadline = std::min(deadline, pair.deadline);
    for (const RdmaLink& link : links_) {
      if (link.state == LinkState::kAdmitting) deadline = std::min(deadline, link.deadline);
    }
    return deadline;
  }

  void disconnect(RdmaLink& link) override {
    link.call.reset();
    link.socket.reset();
    if (link.joining != nullptr) {
      abandoned_.push_back(std::move(link.joining));
      joined_.store(true);  // It may be done already.
    }
    for (uint32_t i = 0; i < link.rails.size(); ++i) {
      if (link.rails[i].queue_pair == nullptr) continue;
      let_die(i, std::move(link.rails[i].queue_pair), link.domains[port_of(i)]);
    }
    const std::lock_guard lock(pulse_mutex_);
    take_pulse_completions();
    link.pulsing = false;
    link.pulse_failure = rdma::CompletionStatus::kOk;
    link.pulse_pair.reset();
  }

  void let_die(uint32_t rail, std::unique_ptr<rdma::QueuePair> queue_pair,
               std::shared_ptr<rdma::ProtectionDomain> domain) {
    const uint32_t port = port_of(rail);
    pairs_.erase(key(port, queue_pair->endpoint().queue_pair));
    queue_pair->fail();
    dying_.push_back(
        {std::move(domain), std::move(queue_pair), port, monotonic_now() + kDyingTime});
  }

  void release(RdmaLink& link) override {
    link.regions.clear();
    if (closing_) return;
    // Registered at once, not when the next link opens. A failure is reported to whoever needs it.
    [[maybe_unused]] const Status status = register_memory(link);
  }

  static uint64_t key(uint32_t port, uint32_t queue_pair) {
    return uint64_t{port} << 32 | queue_pair;
  }

  static constexpr uint32_t kInlineBytes = 128;

  // Before everything that is made of the devices.
  std::vector<Port> ports_;
  std::unique_ptr<rdma::CompletionQueue> pulse_completions_;
  uint32_t send_depth_ = 0;
  TcpCallers callers_;
  std::unordered_map<uint64_t, LinkId> pairs_;
  std::vector<DyingPair> dying_;
  std::vector<std::unique_ptr<Joining>> abandoned_;  // Their links are gone.
  std::atomic<bool> joined_{false};                  // Some Joining is done.
  Status broken_;  // A port or a shared queue; nothing can be carried any more.
  bool slept_ = true;
  bool closing_ = false;
  Nanos fetched_at_ = 0;
  std::atomic<bool> pulse_failed_{false};
  std::mutex pulse_mutex_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> make_rdma_fabric(const FabricOptions& options,
                                                 std::vector<std::shared_ptr<rdma::Device>> ports) {
  VOLLEY_RETURN_IF_ERROR(check_options(options));
  const size_t rails = ports.size() * options.rdma.queue_pairs;
  if (rails == 0 || rails > kRailsMax) {
    return invalid_argument("{} ports with {} queue pairs make {} rails, allowed: 1 to {}",
                            ports.size(), options.rdma.queue_pairs, rails, kRailsMax);
  }
  auto fabric = std::make_unique<RdmaFabric>(options, std::move(ports));
  VOLLEY_RETURN_IF_ERROR(fabric->init());
  return fabric;
}

Result<std::unique_ptr<Fabric>> make_rdma_fabric(const FabricOptions& options) {
  std::vector<std::shared_ptr<rdma::Device>> ports;
  for (const rdma::PortSelector& selector : options.rdma.ports) {
    VOLLEY_ASSIGN_OR_RETURN(ports.emplace_back(), rdma::open_device(selector));
  }
  return make_rdma_fabric(options, std::move(ports));
}

}  // namespace volley::transport
