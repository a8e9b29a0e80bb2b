#pragma once

// The part of RDMA verbs that Volley uses: reliable-connected queue pairs that write into the
// peer's memory, one completion queue and one shared receive queue for many of them. libibverbs
// implements it (rdma/device.h); tests have an implementation that keeps the same rules in memory.
//
// Ownership: every object must die before the Device that made it, and a queue pair before the
// queues it was made with. Threads: objects may be used by one thread at a time each; register and
// create calls of one device by one thread at a time. Nothing here blocks but connect().

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "volley/base/status.h"

namespace volley::rdma {

/// What a work request is about, as its completion gives it back (the 64 bits of `wr_id`).
struct WorkId {
  uint32_t owner = 0;  ///< For example, a link.
  uint16_t index = 0;  ///< For example, a slot.
  uint8_t kind = 0;    ///< At most 254.
  uint8_t rail = 0;
  bool operator==(const WorkId&) const = default;
};

enum class LinkLayer : uint8_t { kInfiniBand = 1, kEthernet = 2 };

/// Where a queue pair is reached. Both ends tell each other theirs before they connect.
struct Endpoint {
  std::array<uint8_t, 16> gid{};  ///< Network order.
  uint32_t queue_pair = 0;        ///< 24 bits.
  uint32_t packet_sequence = 0;   ///< 24 bits, drawn by the owner.
  uint16_t lid = 0;               ///< InfiniBand; 0 on RoCE.
  LinkLayer link_layer = LinkLayer::kEthernet;
  uint16_t mtu = 0;  ///< Bytes of payload a packet, 256 to 4096: what the port is set to.
};

struct DeviceAttributes {
  std::string name;  ///< "mlx5_0"
  uint8_t port = 1;
  LinkLayer link_layer = LinkLayer::kEthernet;
  uint16_t lid = 0;
  uint16_t mtu = 0;
  int gid_index = 0;
  std::array<uint8_t, 16> gid{};
  std::string interface {};  ///< Network interface of the GID, "eth2"; "" where there is none.
  double rate_gbps = 0;      ///< Signalling rate of the port; 0 when unknown.
  uint32_t completion_depth_max = 0;
  uint32_t shared_receives_max = 0;
  uint32_t sends_max = 0;  ///< Work requests of one queue pair.
  uint64_t registration_max = 0;
};

enum class CompletionStatus : uint8_t {
  kOk,
  kFlushed,           ///< The queue pair was already broken when this request's turn came.
  kRetryExceeded,     ///< The peer does not acknowledge: dead, or unreachable.
  kReceiverNotReady,  ///< The peer had no receive for an immediate for too long.
  kRemoteAccess,      ///< The peer's memory region does not allow it, or is gone.
  kRemoteError,       ///< The peer could not complete it for another reason.
  kLocalError,        ///< Our own request was wrong: length, key, queue pair.
};
const char* completion_status_name(CompletionStatus status);

struct Completion {
  WorkId work;  ///< Of a write. Of a receive it is {}.
  CompletionStatus status = CompletionStatus::kOk;
  bool received = false;    ///< Of a receive: if kOk, a write of the peer with `immediate` landed.
  uint32_t queue_pair = 0;  ///< The local queue pair's number.
  uint32_t immediate = 0;   ///< When `received` and kOk; host order.
  uint32_t vendor_error = 0;
};

/// Separates what shares a device: a queue pair reaches, and lets its peer reach, the regions of
/// its own domain alone. Must outlive them.
class ProtectionDomain {
 public:
  virtual ~ProtectionDomain() = default;
};

/// Memory that a device may read and a peer that knows `rkey` may write.
class MemoryRegion {
 public:
  virtual ~MemoryRegion() = default;  ///< Revokes: later writes of a peer fail with kRemoteAccess.
  virtual uint32_t lkey() const = 0;
  virtual uint32_t rkey() const = 0;
};

class CompletionQueue {
 public:
  virtual ~CompletionQueue() = default;
  /// Takes completions off the queue; returns how many. Errors: kInternal (the queue has overrun or
  /// the device is gone): no completion will come any more.
  virtual Result<size_t> poll(std::span<Completion> completions) = 0;
  /// The next completion after this makes event_fd() readable. To sleep without losing one: arm,
  /// poll once more, then wait.
  virtual Status arm() = 0;
  virtual int event_fd() const = 0;  ///< Non-blocking; for epoll.
  /// Takes what made event_fd() readable. To be called after each wake-up by it.
  virtual void clear_events() = 0;
};

/// Receives without buffers: a write with immediate consumes one and carries its payload elsewhere.
class SharedReceiveQueue {
 public:
  virtual ~SharedReceiveQueue() = default;
  /// Errors: kResourceExhausted (the queue is full), kInternal.
  virtual Status post(uint32_t count) = 0;
};

struct WriteRequest {
  const std::byte* local = nullptr;
  uint32_t bytes = 0;
  uint32_t lkey = 0;  ///< Not used when `inlined`.
  uint64_t remote_address = 0;
  uint32_t rkey = 0;
  WorkId work;
  std::optional<uint32_t> immediate;  ///< Consumes a receive of the peer, after all bytes landed.
  bool signalled = false;             ///< Failures always complete; successes only if signalled.
  bool inlined = false;  ///< `local` may change as soon as post() returns; bytes <= inline_bytes().
};

struct ConnectionOptions {
  uint8_t service_level = 0;  ///< InfiniBand SL; on RoCE the priority where the fabric maps it.
  uint8_t traffic_class = 0;  ///< RoCE v2: DSCP << 2 and ECN.
  uint8_t hop_limit = 64;
  /// 4.096 us * 2^x until a packet is sent again, 1 to 31; 14 is 67 ms. Shorter than a busy peer's
  /// card, or Soft-RoCE's threads, take to answer, it only adds load.
  uint8_t ack_timeout = 14;
  uint8_t retries = 6;       ///< 0 to 6. Soft-RoCE takes 7 as "for ever".
  /// 7: for ever. Fewer, because queues deep enough make a lack of receives a failure.
  uint8_t receiver_not_ready_retries = 6;
  uint8_t receiver_not_ready_timer = 20;  ///< IBTA code; 20 is 10 ms.
};

struct QueuePairOptions {
  uint32_t sends = 0;                  ///< Work requests that can be outstanding.
  uint32_t inline_bytes = 0;           ///< Asked for; inline_bytes() says what was given.
  ProtectionDomain* domain = nullptr;  ///< Null: the device's own.
};

class QueuePair {
 public:
  virtual ~QueuePair() = default;
  /// Of this end; queue_pair, packet_sequence and the port's addresses.
  virtual const Endpoint& endpoint() const = 0;
  virtual uint32_t inline_bytes() const = 0;
  /// Makes it ready to send and to receive. May take as long as the kernel needs to find the peer's
  /// hardware address: a second where nobody answers. Errors: kFailedPrecondition (link layers
  /// differ), kUnavailable (no route), kInternal.
  virtual Status connect(const Endpoint& peer, const ConnectionOptions& options) = 0;
  /// Hands over all requests with one doorbell, or a prefix of them. A request that was not taken
  /// was not started. Errors: kResourceExhausted (queue full), kInternal.
  virtual Status post(std::span<const WriteRequest> requests) = 0;
  /// Breaks it: what is outstanding completes as kFlushed, and the peer's writes no longer land.
  /// With a shared receive queue, kLastReceiveReached follows.
  virtual void fail() = 0;
};

enum class AsyncEventKind : uint8_t {
  kLastReceiveReached,  ///< A broken queue pair consumes no more of the shared receives.
  kQueuePairError,      ///< The queue pair is broken.
  kPortDown,
  kPortUp,
  kDeviceFatal,
  kQueueError,  ///< A completion queue or shared receive queue is broken.
  kOther,
};
struct AsyncEvent {
  AsyncEventKind kind = AsyncEventKind::kOther;
  uint32_t queue_pair = 0;  ///< Of the first two kinds.
};

/// One port of an RDMA device, opened.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceAttributes& attributes() const = 0;

  /// Errors: kResourceExhausted.
  virtual Result<std::unique_ptr<ProtectionDomain>> create_protection_domain() = 0;
  /// Local read and write; remote write when `remote_write`. Null: the device's own domain. Errors:
  /// kResourceExhausted (says which limit, and what to do), kInvalidArgument.
  virtual Result<std::unique_ptr<MemoryRegion>> register_memory(
      std::span<std::byte> memory, bool remote_write, ProtectionDomain* domain = nullptr) = 0;
  /// Errors: kInvalidArgument (deeper than the device allows), kResourceExhausted.
  virtual Result<std::unique_ptr<CompletionQueue>> create_completion_queue(uint32_t depth) = 0;
  virtual Result<std::unique_ptr<SharedReceiveQueue>> create_shared_receive_queue(
      uint32_t depth) = 0;
  /// `receives` may be null for a queue pair that gets no immediates.
  virtual Result<std::unique_ptr<QueuePair>> create_queue_pair(const QueuePairOptions& options,
                                                               CompletionQueue& completions,
                                                               SharedReceiveQueue* receives) = 0;

  virtual int async_fd() const = 0;  ///< Non-blocking; readable when next_event() has something.
  virtual std::optional<AsyncEvent> next_event() = 0;
};

}  // namespace volley::rdma
