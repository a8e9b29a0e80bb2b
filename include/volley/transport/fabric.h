#pragma once

// The M2N transport. A Fabric moves slots between this node and its peers; what a slot holds is
// protocol/wire.h, and who may use which slot when is protocol/link.h.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/protocol/wire.h"
#include "volley/transport/rdma_options.h"

namespace volley::transport {

/// A secret that the control plane hands to the two ends of a link.
using LinkKey = std::array<uint8_t, 16>;

/// How a node introduces itself on a link.
struct NodeIdentity {
  std::string name;  ///< At most 63 bytes, unique in the cluster.
  Incarnation incarnation;
};

struct FabricOptions {
  NodeIdentity self;
  protocol::LinkGeometry geometry;  ///< Of every link of this node.
  uint32_t links_max = 8;           ///< Memory for so many links is taken at creation.
  /// What the model fixes for every message: headers are checked against it on arrival, and two
  /// nodes link only if they agree. `layers` is at least 1; the dtypes are of protocol::RowDType,
  /// opaque here.
  uint32_t layers = 0;
  uint8_t dtype = 0;
  uint8_t dispatch_dtype = 0;  ///< Of the rows of dispatches; 0: `dtype`, which answers have.
  LinkKey key{};  ///< What a peer that connects must present.
  /// Where to listen, backend specific: "" for a node that only connects; tcp "127.0.0.1:0" (0
  /// picks a port), also for rdma, whose handshake it carries; shm and local take any other text,
  /// for example "auto", and invent a unique name.
  std::string listen;
  Nanos connect_timeout = 5 * kSecond;
  RdmaOptions rdma{};  ///< Of `rdma` only.
};

enum class EventKind : uint8_t {
  kOpened,   ///< The link is usable; peer() names who is at the other end.
  kMessage,  ///< recv_slot(link, slot) holds a message; recv_header() is its checked header.
  kClosed,   ///< The link is gone for good; every message on it that was not seen is lost.
             ///< Codes: kUnauthenticated (key), kFailedPrecondition (version, geometry, model),
             ///< kResourceExhausted (links_max of either end), kDeadlineExceeded (connect_timeout),
             ///< kDataLoss (the peer sent what the wire format or its credit does not allow),
             ///< kUnavailable (nobody there, or gone).
};

struct FabricEvent {
  EventKind kind = EventKind::kClosed;
  LinkId link;
  uint32_t slot = 0;
  StatusCode code = StatusCode::kOk;  ///< kClosed: why. close_reason() has the words.
};

/// One node's end of the data plane.
///
/// Thread: all methods belong to the node's engine thread, except wake() and pulse(), which any
/// thread may call. Nothing here blocks except wait(). No allocation after the link is open.
///
/// Slot rules (the caller keeps them; protocol/link.h does): a send slot may be written when its
/// last message has been answered, and must stay unchanged from post() until then. A receive slot
/// may be read from its kMessage event until the next post() to that link and slot in the other
/// direction. A slot's messages alternate: the side that connected sends first, and each side sends
/// again only after the other has. A peer that breaks this loses the link (kDataLoss): its message
/// would land in memory that is being read.
///
/// Memory of a link that reported kClosed stays readable and writable until the next poll(), or
/// close(): the engine drops its references while it handles the event.
class Fabric {
 public:
  virtual ~Fabric() = default;

  /// "shm", "tcp", ...
  virtual const char* name() const = 0;
  /// What peers pass to connect(); "" when this node does not listen.
  virtual const std::string& address() const = 0;

  /// Starts a link to the node that listens at `address`. It ends in kOpened, or in kClosed within
  /// connect_timeout. On tcp and rdma the address is numeric or "localhost" (127.0.0.1), because a
  /// name service could block. Errors: kInvalidArgument (malformed address), kResourceExhausted
  /// (links_max).
  virtual Result<LinkId> connect(const std::string& address, const LinkKey& key) = 0;
  /// Ends a link and revokes its memory: when close() returns, nothing that the peer still writes
  /// can reach memory that a later link uses. No event follows. Unknown links are ignored.
  virtual void close(LinkId link) = 0;

  /// Valid between kOpened and close(), or until the call after the one that reported kClosed.
  virtual const NodeIdentity& peer(LinkId link) const = 0;
  virtual std::string close_reason(LinkId link) const = 0;

  /// What `MessageHeader::link` holds in both directions of this link; drawn by the listener.
  virtual uint32_t wire_link(LinkId link) const = 0;

  /// This node's outgoing and incoming memory of one slot. The side that called connect() sends
  /// dispatches and receives answers; the listener the other way round: the sizes follow from the
  /// geometry.
  virtual std::byte* send_slot(LinkId link, uint32_t slot) = 0;
  virtual const std::byte* recv_slot(LinkId link, uint32_t slot) const = 0;

  /// The header of the slot's last message as it was when it was checked. Sizes must be taken from
  /// here: on shm the peer can still write to the one in the slot. Valid as long as the slot, and
  /// unchanged until the slot's next kMessage.
  virtual const protocol::MessageHeader& recv_header(LinkId link, uint32_t slot) const = 0;

  /// Sends the message in the slot; its header gives the sizes. Failures show as kClosed.
  virtual void post(LinkId link, uint32_t slot) = 0;

  /// Progresses I/O and reports what happened; returns the number of events written. On one link:
  /// kOpened, messages, kClosed, in this order; no order holds between slots or between links.
  virtual size_t poll(std::span<FabricEvent> events) = 0;
  /// Returns when poll() may have something, after wake(), or at `deadline` (monotonic). Spins
  /// briefly, then sleeps.
  virtual void wait(Nanos deadline) = 0;
  /// Makes a current or the next wait() return. Thread-safe, cheap when nobody sleeps.
  virtual void wake() = 0;

  /// Tells all peers that this process is alive, although its engine thread may be computing.
  /// Thread-safe; called a few times per link timeout by the daemon.
  virtual void pulse() = 0;
  /// When the peer was last heard: a message, a part of one, or a pulse. Monotonic nanoseconds, as
  /// of the last poll().
  virtual Nanos last_heard(LinkId link) const = 0;

  /// Payload and message counts since creation, for metrics.
  struct Counters {
    uint64_t messages_sent = 0, messages_received = 0;
    uint64_t bytes_sent = 0, bytes_received = 0;
    /// Payload bytes the backend copied between user buffers. 0 on local, shm and rdma.
    uint64_t bytes_copied = 0;
  };
  virtual Counters counters() const = 0;
};

/// `backend` is "local", "shm", "tcp" or "rdma". Takes and touches all link memory. Errors:
/// kInvalidArgument (unknown backend, bad geometry or address), kResourceExhausted (memory),
/// kUnavailable (the address cannot be bound); rdma: also those of rdma::open_device().
Result<std::unique_ptr<Fabric>> make_fabric(const std::string& backend,
                                            const FabricOptions& options);

}  // namespace volley::transport
