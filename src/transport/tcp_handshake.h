#pragma once

// Hello and Welcome over a TCP connection, for the backends that meet there: `tcp`, which goes on
// with messages, and `rdma`, which exchanges offers with them and then keeps the connection as
// the proof of life.

#include <absl/functional/function_ref.h>

#include <limits>
#include <span>
#include <vector>

#include "handshake.h"
#include "tcp_address.h"
#include "waiter.h"

namespace volley::transport {

/// The connecting side's half, driven by readiness of fd() (EPOLLIN and EPOLLOUT until sent()).
class TcpCall {
 public:
  /// Starts to connect. `offer` goes right behind the hello, and `answer_bytes` come right behind a
  /// welcome that accepts. Errors: kUnavailable.
  Status start(const TcpAddress& target, const FabricOptions& self, const LinkKey& key,
               std::span<const std::byte> offer, size_t answer_bytes);
  /// True when the listener has accepted and answer() is complete. Reads no further than that.
  /// Errors: kUnavailable, and those of check_welcome().
  Result<bool> advance();

  bool active() const { return static_cast<bool>(socket_); }
  int fd() const { return socket_.get(); }
  bool sent() const { return sent_; }
  const Welcome& welcome() const { return welcome_; }
  std::span<const std::byte> answer() const { return answer_; }
  UniqueFd take_socket() { return std::move(socket_); }
  void reset() { socket_.reset(); }

 private:
  Status send_greeting();

  UniqueFd socket_;
  bool sent_ = false;
  std::vector<std::byte> greeting_;
  size_t received_ = 0;  // Of the welcome, then of the answer.
  Welcome welcome_;
  std::vector<std::byte> answer_;
};

/// The listener's half: connections that have not said their whole greeting yet, or that have been
/// refused and shall read why. Their number and their time are bounded.
class TcpCallers {
 public:
  /// `waiter` and `options` must outlive it. `offer_bytes` follow each hello.
  TcpCallers(Waiter& waiter, const FabricOptions& options, size_t offer_bytes)
      : waiter_(waiter), options_(options), offer_bytes_(offer_bytes) {}

  /// Listens at options.listen; `address` becomes what peers connect to. Errors: kInvalidArgument,
  /// kUnavailable, kResourceExhausted.
  Status listen(std::string& address);

  /// A caller whose hello has passed check_hello(). The socket is in the waiter's set, for EPOLLIN,
  /// under a tag of ours.
  struct Greeting {
    const Hello& hello;
    std::span<const std::byte> offer;
    UniqueFd& socket;
  };
  /// Whether handle() is meant for the waiter's `tag`; link tags must have other bits 32 to 63.
  static bool owns(uint64_t tag) {
    return tag == kListenerTag || (tag >> 32) == (kCallerTag >> 32);
  }
  /// `admit` takes the socket over, or fails and leaves it: then the caller is told the reason.
  void handle(uint64_t tag, Nanos now, absl::FunctionRef<Status(Greeting)> admit);
  /// Tells a caller whose socket `admit` took why it gets no link after all.
  void refuse(UniqueFd socket, Nanos now, const Status& why);
  void expire(Nanos now);
  Nanos deadline() const;

 private:
  struct Caller {
    UniqueFd socket;
    uint64_t serial = 0;
    Nanos deadline = 0;
    size_t bytes = 0;
    Hello hello;
    std::vector<std::byte> offer;
    bool refused = false;
  };

  static constexpr size_t kCallersMax = 64;
  static constexpr uint64_t kListenerTag = 1;
  static constexpr uint64_t kCallerTag = uint64_t{1} << 32;  // | serial, 31 bits

  void accept(Nanos now);
  Caller& add_caller(UniqueFd socket, uint64_t serial, Nanos now);
  bool hear(Caller& caller, absl::FunctionRef<Status(Greeting)> admit);
  bool refuse(Caller& caller, const Status& why);

  Waiter& waiter_;
  const FabricOptions& options_;
  size_t offer_bytes_;
  UniqueFd listener_;
  std::vector<Caller> callers_;
  uint64_t serial_ = 0;
};

}  // namespace volley::transport
