#pragma once

// What all backends share: the table of links, the order of events and the life of a link. A
// backend adds how bytes and bad news travel.

#include <algorithm>
#include <bit>
#include <mutex>
#include <vector>

#include "handshake.h"
#include "inbox.h"
#include "volley/base/check.h"
#include "waiter.h"

namespace volley::transport {

enum class LinkState : uint8_t {
  kFree,
  kConnecting,
  kAdmitting,  ///< A caller's, being made ready; only the backend knows of it.
  kOpen,
  kFailed,    ///< Gone; kClosed has not been reported.
  kReported,  ///< kClosed has been reported; the next poll() or close() takes the memory back.
};

struct LinkCore {
  LinkId id;
  LinkState state = LinkState::kFree;
  bool connector = false;  ///< We called connect(): we send dispatches.
  bool announce = false;   ///< kOpened has not been reported.
  uint32_t ready = 0;      ///< Slots whose message has not been reported.
  uint32_t wire_link = 0;
  Nanos last_heard = 0;
  Nanos deadline = 0;  ///< While connecting.
  std::byte* send_base = nullptr;
  std::byte* recv_base = nullptr;
  NodeIdentity peer;
  StatusCode code = StatusCode::kOk;
  std::string reason;
  Inbox inbox;
};

/// Bytes of the entries (with their weights) and rows that a header announces, never more than the
/// layout holds: a header that does not fit is for the receiver to refuse, and must not make us
/// read beyond the slot.
struct MessageSizes {
  size_t entries = 0;
  size_t rows = 0;
};
inline MessageSizes message_sizes(const protocol::MessageHeader& header,
                                  const protocol::SlotLayout& layout) {
  return {.entries = layout.entries_bytes(std::min(header.entry_count, layout.entries_max)),
          .rows = size_t{std::min(header.row_count, layout.rows_max)} * layout.row_bytes};
}

/// `Link` derives from LinkCore. Everything runs on the engine thread, except what says otherwise.
template <class Link>
class FabricBase : public Fabric {
 public:
  explicit FabricBase(const FabricOptions& options)
      : options_(options), links_(options.links_max) {}

  const std::string& address() const override { return address_; }
  const NodeIdentity& peer(LinkId link) const override { return at(link).peer; }
  std::string close_reason(LinkId link) const override { return at(link).reason; }
  uint32_t wire_link(LinkId link) const override { return at(link).wire_link; }
  Nanos last_heard(LinkId link) const override { return at(link).last_heard; }
  Counters counters() const override { return counters_; }

  std::byte* send_slot(LinkId link, uint32_t slot) override {
    const Link& l = at(link);
    VOLLEY_CHECK(slot < options_.geometry.slot_count() && l.send_base != nullptr);
    return l.send_base + slot * send_layout(l).slot_bytes();
  }
  const std::byte* recv_slot(LinkId link, uint32_t slot) const override {
    const Link& l = at(link);
    VOLLEY_CHECK(slot < options_.geometry.slot_count() && l.recv_base != nullptr);
    return l.recv_base + slot * recv_layout(l).slot_bytes();
  }
  const protocol::MessageHeader& recv_header(LinkId link, uint32_t slot) const override {
    VOLLEY_CHECK(slot < options_.geometry.slot_count());
    return at(link).inbox.header(slot);
  }

  void close(LinkId link) override {
    if (Link* l = find(link)) free_link(*l);
  }

  void post(LinkId link, uint32_t slot) override {
    Link& l = at(link);
    VOLLEY_CHECK(slot < options_.geometry.slot_count());
    const protocol::SlotLayout& layout = send_layout(l);
    const protocol::MessageHeader& header =
        protocol::header_of(l.send_base + slot * layout.slot_bytes());
    const MessageSizes sizes = message_sizes(header, layout);
    ++counters_.messages_sent;
    counters_.bytes_sent += sizeof header + sizes.entries + sizes.rows;
    // Posted, although it goes nowhere: the caller has not heard of the end yet.
    if (l.state != LinkState::kOpen) return;
    l.inbox.grant(slot);
    transmit(l, slot, sizes);
  }

  size_t poll(std::span<FabricEvent> events) override {
    now_ = monotonic_now();
    for (Link& link : links_) {
      if (link.state == LinkState::kReported) free_link(link);
    }
    progress();
    for (Link& link : links_) {
      if (link.state == LinkState::kConnecting && now_ >= link.deadline) {
        fail(link, make_status(StatusCode::kDeadlineExceeded, "no answer within {} ms",
                               options_.connect_timeout / kMillisecond));
      }
    }
    size_t count = 0;
    for (size_t i = 0; i < links_.size() && count < events.size(); ++i) {
      count += report(links_[next_], events.subspan(count));
      next_ = (next_ + 1) % links_.size();
    }
    return count;
  }

  void wait(Nanos deadline) override {
    for (const Link& link : links_) {
      if (has_news(link)) return;
      if (link.state == LinkState::kConnecting) deadline = std::min(deadline, link.deadline);
    }
    deadline = std::min(deadline, idle_deadline());
    waiter_.wait(
        deadline, [this] { return input_ready(); }, [this] { set_sleeping(true); },
        [this] { set_sleeping(false); });
  }
  void wake() override { waiter_.wake(); }

 protected:
  /// Progresses I/O: calls opened(), received() and fail().
  virtual void progress() = 0;
  /// Sends the message in `slot` of an open link.
  virtual void transmit(Link& link, uint32_t slot, const MessageSizes& sizes) = 0;
  /// Ends what the peer can see of the link at once; its memory stays.
  virtual void disconnect(Link& link) = 0;
  /// Revokes the link's memory. disconnect() has been called.
  virtual void release(Link& link) = 0;
  /// Whether progress() would find something; called while polling, so it must be cheap.
  virtual bool input_ready() = 0;
  /// See Waiter::wait.
  virtual void set_sleeping(bool sleeping) = 0;
  /// When something other than a connecting link times out.
  virtual Nanos idle_deadline() const = 0;

  const protocol::SlotLayout& send_layout(const Link& link) const {
    return link.connector ? options_.geometry.dispatch : options_.geometry.answer;
  }
  const protocol::SlotLayout& recv_layout(const Link& link) const {
    return link.connector ? options_.geometry.answer : options_.geometry.dispatch;
  }

  Link* find(LinkId id) {
    Link& link = links_[id.value % links_.size()];
    return link.state != LinkState::kFree && link.id == id ? &link : nullptr;
  }
  const Link& at(LinkId id) const {
    const Link& link = links_[id.value % links_.size()];
    VOLLEY_CHECK(link.state != LinkState::kFree && link.id == id);
    return link;
  }
  Link& at(LinkId id) { return const_cast<Link&>(std::as_const(*this).at(id)); }

  /// A free link with a fresh id, or nullptr when all links_max are taken. The caller sets the
  /// state.
  Link* take_link() {
    for (size_t i = 0; i < links_.size(); ++i) {
      if (links_[i].state != LinkState::kFree) continue;
      // The index in the low part makes find() a table look-up; the serial makes ids unique for
      // 2^32 / links_max links, far longer than any LinkId is remembered.
      links_[i].id =
          LinkId{++serial_ * static_cast<uint32_t>(links_.size()) + static_cast<uint32_t>(i)};
      return &links_[i];
    }
    return nullptr;
  }
  Status links_exhausted() const {
    return resource_exhausted("all {} links of {} are in use", links_.size(), options_.self.name);
  }

  void opened(Link& link, NodeIdentity peer, uint32_t wire_link) {
    link.peer = std::move(peer);
    link.wire_link = wire_link;
    link.last_heard = now_;
    link.state = LinkState::kOpen;
    link.announce = true;
    // The connecting side sends first, so the listener's inbox has credit from the start.
    link.inbox.open(expectation_of(options_, link.connector, link.peer.incarnation, wire_link),
                    !link.connector);
  }
  /// A checked message lies in the slot.
  void received(Link& link, uint32_t slot) {
    const MessageSizes sizes = message_sizes(link.inbox.header(slot), recv_layout(link));
    ++counters_.messages_received;
    counters_.bytes_received += sizeof(protocol::MessageHeader) + sizes.entries + sizes.rows;
    link.last_heard = now_;
    link.ready |= 1u << slot;
  }
  void fail(Link& link, const Status& why) {
    if (link.state != LinkState::kConnecting && link.state != LinkState::kOpen) return;
    link.state = LinkState::kFailed;
    link.code = why.code();
    link.reason = message_of(why);
    disconnect(link);
  }
  void close_all() {
    for (Link& link : links_) {
      if (link.state != LinkState::kFree) free_link(link);
    }
  }

  FabricOptions options_;
  std::string address_;
  Waiter waiter_;
  std::vector<Link> links_;
  Counters counters_;
  Nanos now_ = 0;  // Of the current poll().

 private:
  static bool has_news(const Link& link) {
    return link.announce || link.ready != 0 || link.state == LinkState::kFailed;
  }

  size_t report(Link& link, std::span<FabricEvent> events) {
    size_t count = 0;
    if (link.announce && count < events.size()) {
      link.announce = false;
      events[count++] = {.kind = EventKind::kOpened, .link = link.id};
    }
    while (link.ready != 0 && count < events.size()) {
      const auto slot = static_cast<uint32_t>(std::countr_zero(link.ready));
      link.ready &= link.ready - 1;
      events[count++] = {.kind = EventKind::kMessage, .link = link.id, .slot = slot};
    }
    if (link.state == LinkState::kFailed && count < events.size()) {
      link.state = LinkState::kReported;
      events[count++] = {.kind = EventKind::kClosed, .link = link.id, .code = link.code};
    }
    return count;
  }

  void free_link(Link& link) {
    if (link.state == LinkState::kConnecting || link.state == LinkState::kAdmitting ||
        link.state == LinkState::kOpen) {
      disconnect(link);
    }
    release(link);
    link.state = LinkState::kFree;
    link.announce = false;
    link.ready = 0;
    link.send_base = link.recv_base = nullptr;
    link.reason.clear();
  }

  uint32_t serial_ = 0;
  size_t next_ = 0;
};

}  // namespace volley::transport
