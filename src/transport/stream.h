#pragma once

// A TCP link's bytes: frames back to back, each a message (header, used entries, used rows; no
// padding) or a heartbeat of 64 bytes. The parser and the writer know no more than that of a
// connection.

#include <sys/uio.h>

#include <array>
#include <mutex>

#include "inbox.h"
#include "waiter.h"

namespace volley::transport {

inline constexpr uint32_t kHeartbeatMagic = 0x48594c56;  // "VLYH"

struct Heartbeat {
  uint32_t magic = kHeartbeatMagic;                // 0
  uint16_t wire_version = protocol::kWireVersion;  // 4
  uint16_t reserved0 = 0;                          // 6
  uint64_t incarnation = 0;                        // 8   the sender's
  uint64_t reserved[6] = {};                       // 16
};
static_assert(sizeof(Heartbeat) == sizeof(protocol::MessageHeader));

/// Turns received bytes into messages in receive slots: it says where the next bytes belong, so
/// that the kernel puts large payloads there and nothing is copied afterwards. What follows the
/// frame being read goes to a small buffer: so one system call takes a header and a small payload,
/// or several frames, and shows that the socket is empty. A header decides nothing before it has
/// been checked by the inbox.
class StreamParser {
 public:
  enum class Progress { kPartial, kHeartbeat, kMessage };
  /// Bytes read ahead of the frame: a row of most models, less than what a system call is worth.
  static constexpr size_t kAheadBytes = 4096;
  using Buffers = std::array<iovec, 3>;

  /// Messages go to `slots`, inbox.expected().layout.slot_bytes() apart. Both outlive the parser's
  /// use.
  void open(Inbox* inbox, std::byte* slots);
  /// Where the next bytes go, in stream order; never 0 buffers, never an empty one.
  size_t buffers(Buffers& out);
  /// The first `received` bytes of those buffers have been filled, or 0 to go on with what is
  /// already here: after anything but kPartial the caller must. After kMessage, slot() has it.
  /// Errors: kDataLoss; the stream cannot be read any further.
  Result<Progress> advance(size_t received);
  uint32_t slot() const { return slot_; }
  /// Payload bytes that went through the small buffer since open().
  uint64_t bytes_copied() const { return bytes_copied_; }

 private:
  /// Reads the header at the start of what is ahead. kPartial: of a message.
  Result<Progress> accept_header();
  void take_ahead();

  Inbox* inbox_ = nullptr;
  std::byte* slots_ = nullptr;
  uint32_t slot_ = 0;
  bool in_message_ = false;         // A header was accepted, its payload is not complete.
  std::array<iovec, 2> payload_{};  // What is missing of entries and rows.
  // Bytes after the frame being read: [ahead_begin_, ahead_end_). None while payload is missing.
  std::array<std::byte, kAheadBytes> ahead_{};
  size_t ahead_begin_ = 0, ahead_end_ = 0;
  uint64_t bytes_copied_ = 0;
};

/// Puts frames on a socket as it takes them, and asks for EPOLLOUT as long as it does not. When the
/// connection breaks it shuts the socket down and drops all frames: the reading side then comes to
/// the end of what was received, which is when the link has ended. Thread: pulse() may come from
/// any thread, the rest belongs to the engine.
class StreamWriter {
 public:
  /// The bytes stay unchanged until they have been sent.
  struct Frame {
    std::array<iovec, 2> parts{};
  };

  /// `fd` is registered in `waiter` under `tag` for EPOLLIN. `incarnation` is ours, for the
  /// heartbeats.
  void open(int fd, uint64_t incarnation, Waiter* waiter, uint64_t tag);
  void close();
  void post(const Frame& frame);
  /// The socket is or may be writable. Cheap when nothing waits.
  void flush();
  /// Sends a heartbeat unless a frame is on its way, which says as much. Never waits for the
  /// engine.
  void pulse();

 private:
  // One frame a slot and one heartbeat.
  static constexpr size_t kQueueMax = kSlotsMax + 1;

  void send_queue();
  void consume_queue(size_t bytes);
  void want_writable(bool want);

  std::mutex mutex_;
  int fd_ = -1;  // -1 before open(), after close() and when the connection is broken.
  Waiter* waiter_ = nullptr;
  uint64_t tag_ = 0;
  bool waiting_ = false;  // For EPOLLOUT.
  Heartbeat heartbeat_;
  std::array<Frame, kQueueMax> queue_{};  // A ring; parts shrink as they are sent.
  size_t first_ = 0;
  size_t count_ = 0;
};

}  // namespace volley::transport
