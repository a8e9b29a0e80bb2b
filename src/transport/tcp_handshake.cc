#include "tcp_handshake.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace volley::transport {
namespace {

void set_option(int fd, int level, int option, int value) {
  ::setsockopt(fd, level, option, &value, sizeof value);
}

void tune(int fd, const FabricOptions& options) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  // A host that vanished with unacknowledged data is found out here; one that is merely silent,
  // by last_heard().
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
             static_cast<int>(std::min<Nanos>(options.connect_timeout / kMillisecond, 1 << 30)));
}

}  // namespace

Status TcpCall::start(const TcpAddress& target, const FabricOptions& self, const LinkKey& key,
                      std::span<const std::byte> offer, size_t answer_bytes) {
  const Hello hello = make_hello(self, key);
  const auto bytes = std::as_bytes(std::span(&hello, 1));
  greeting_.assign(bytes.begin(), bytes.end());
  greeting_.insert(greeting_.end(), offer.begin(), offer.end());
  answer_.resize(answer_bytes);
  sent_ = false;
  received_ = 0;
  socket_ =
      UniqueFd(::socket(target.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket_) return unavailable("socket: {}", errno_text(errno));
  tune(socket_.get(), self);
  if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&target.storage), target.length) !=
          0 &&
      errno != EINPROGRESS) {
    return unavailable("connecting to {}: {}", tcp_address_text(target), errno_text(errno));
  }
  return ok_status();
}

Status TcpCall::send_greeting() {
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) return unavailable("connecting: {}", errno_text(error));
  const ssize_t sent = ::send(socket_.get(), greeting_.data(), greeting_.size(), MSG_NOSIGNAL);
  if (sent < 0 && errno == EAGAIN) return ok_status();  // Still connecting.
  // The buffer of a new connection holds far more than a greeting.
  if (sent != static_cast<ssize_t>(greeting_.size())) {
    return unavailable("sending the hello: {}", errno_text(errno));
  }
  sent_ = true;
  return ok_status();
}

Result<bool> TcpCall::advance() {
  if (!sent_) VOLLEY_RETURN_IF_ERROR(send_greeting());
  while (true) {
    const bool in_welcome = received_ < sizeof welcome_;
    std::byte* into = in_welcome ? reinterpret_cast<std::byte*>(&welcome_) + received_
                                 : answer_.data() + (received_ - sizeof welcome_);
    const size_t wanted =
        in_welcome ? sizeof welcome_ - received_ : sizeof welcome_ + answer_.size() - received_;
    if (wanted == 0) return true;
    const ssize_t got = ::recv(socket_.get(), into, wanted, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (got < 0) return unavailable("waiting for the welcome: {}", errno_text(errno));
    if (got == 0) return unavailable("the listener hung up during the handshake");
    received_ += static_cast<size_t>(got);
    if (received_ < 8) continue;
    // Another version's welcome may be shorter than ours.
    const bool foreign =
        welcome_.magic != kWelcomeMagic || welcome_.wire_version != protocol::kWireVersion;
    if (in_welcome && (foreign || received_ == sizeof welcome_)) {
      VOLLEY_RETURN_IF_ERROR(check_welcome(welcome_));
    }
  }
}

Status TcpCallers::listen(std::string& address) {
  VOLLEY_ASSIGN_OR_RETURN(TcpAddress bound, parse_tcp_address(options_.listen, true));
  listener_ =
      UniqueFd(::socket(bound.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_) return unavailable("{}: socket: {}", options_.listen, errno_text(errno));
  // A restarted node gets its port back although old connections linger.
  set_option(listener_.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&bound.storage), bound.length) !=
          0 ||
      ::listen(listener_.get(), SOMAXCONN) != 0) {
    return unavailable("{}: {}", options_.listen, errno_text(errno));
  }
  bound.length = sizeof bound.storage;
  ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound.storage), &bound.length);
  address = tcp_address_text(bound);
  callers_.reserve(kCallersMax);
  return waiter_.add(listener_.get(), EPOLLIN, kListenerTag);
}

void TcpCallers::handle(uint64_t tag, Nanos now, absl::FunctionRef<Status(Greeting)> admit) {
  if (tag == kListenerTag) return accept(now);
  const auto caller = std::find_if(callers_.begin(), callers_.end(), [&](const Caller& c) {
    return c.serial == static_cast<uint32_t>(tag);
  });
  if (caller != callers_.end() && !hear(*caller, admit)) callers_.erase(caller);
}

void TcpCallers::expire(Nanos now) {
  std::erase_if(callers_, [now](const Caller& caller) { return now >= caller.deadline; });
}

Nanos TcpCallers::deadline() const {
  Nanos deadline = std::numeric_limits<Nanos>::max();
  for (const Caller& caller : callers_) deadline = std::min(deadline, caller.deadline);
  return deadline;
}

void TcpCallers::accept(Nanos now) {
  while (true) {
    UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) return;
    // Hung up on: the number of strangers is bounded.
    if (callers_.size() == kCallersMax) continue;
    tune(socket.get(), options_);
    const uint64_t serial = ++serial_ & 0x7fffffff;
    if (!waiter_.add(socket.get(), EPOLLIN, kCallerTag | serial).ok()) return;
    add_caller(std::move(socket), serial, now).offer.resize(offer_bytes_);
  }
}

TcpCallers::Caller& TcpCallers::add_caller(UniqueFd socket, uint64_t serial, Nanos now) {
  Caller& caller = callers_.emplace_back();
  caller.socket = std::move(socket);
  caller.serial = serial;
  caller.deadline = now + options_.connect_timeout;
  return caller;
}

void TcpCallers::refuse(UniqueFd socket, Nanos now, const Status& why) {
  if (callers_.size() == kCallersMax) return;  // Hung up on, as in accept().
  const uint64_t serial = ++serial_ & 0x7fffffff;
  waiter_.modify(socket.get(), EPOLLIN, kCallerTag | serial);
  refuse(add_caller(std::move(socket), serial, now), why);
}

// False when the caller is done with: refused and gone, lost, or a link by now.
bool TcpCallers::hear(Caller& caller, absl::FunctionRef<Status(Greeting)> admit) {
  const int fd = caller.socket.get();
  while (true) {
    // A connection closed with unread bytes is reset, and the reason might not arrive: a refused
    // caller is read until it hangs up or its time is over.
    std::byte rest[256];
    const bool in_hello = caller.bytes < sizeof caller.hello;
    std::byte* into = caller.refused ? rest
                      : in_hello     ? reinterpret_cast<std::byte*>(&caller.hello) + caller.bytes
                                     : caller.offer.data() + (caller.bytes - sizeof caller.hello);
    const size_t wanted = caller.refused ? sizeof rest
                          : in_hello     ? sizeof caller.hello - caller.bytes
                                         : sizeof caller.hello + caller.offer.size() - caller.bytes;
    const ssize_t received = ::recv(fd, into, wanted, 0);
    if (received < 0) return errno == EAGAIN || errno == EINTR;
    if (received == 0) return false;
    // No further now: whoever keeps sending must not keep this thread.
    if (caller.refused) return true;
    caller.bytes += static_cast<size_t>(received);
    if (caller.bytes < 8) continue;
    const bool foreign =
        caller.hello.magic != kHelloMagic || caller.hello.wire_version != protocol::kWireVersion;
    if (caller.bytes < sizeof caller.hello && !foreign) continue;
    // Judged before its offer is waited for, which another backend's caller would not send.
    if (in_hello) {
      if (const Status verdict = check_hello(caller.hello, options_); !verdict.ok()) {
        return refuse(caller, verdict);
      }
    }
    if (caller.bytes < sizeof caller.hello + caller.offer.size()) continue;
    const Status verdict =
        admit({.hello = caller.hello, .offer = caller.offer, .socket = caller.socket});
    return verdict.ok() ? false : refuse(caller, verdict);
  }
}

bool TcpCallers::refuse(Caller& caller, const Status& why) {
  const Welcome refusal = make_refusal(options_, why);
  ::send(caller.socket.get(), &refusal, sizeof refusal, MSG_NOSIGNAL);
  ::shutdown(caller.socket.get(), SHUT_WR);
  caller.refused = true;
  return true;
}

}  // namespace volley::transport
