#include "rendezvous.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "fail.h"

namespace raw_verbs {

using std::chrono::steady_clock;

Rendezvous::Rendezvous(int fd, double deadline_s) : fd_(fd) {
  const int on = 1;
  ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // The peer is silent while a run lasts, which its own deadline bounds.
  const timeval limit{.tv_sec = static_cast<time_t>(deadline_s) + 1, .tv_usec = 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

Rendezvous::Rendezvous(Rendezvous&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Rendezvous::~Rendezvous() {
  if (fd_ >= 0) ::close(fd_);
}

Rendezvous Rendezvous::accept(uint16_t port, double deadline_s) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 1) != 0) {
    fail("cannot listen on TCP port {}: {}", port, std::strerror(errno));
  }
  pollfd waiting{.fd = listener, .events = POLLIN, .revents = 0};
  if (::poll(&waiting, 1, static_cast<int>(deadline_s * 1e3)) != 1) {
    fail("no peer came to TCP port {} within {} s", port, deadline_s);
  }
  const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) fail("accept on TCP port {}: {}", port, std::strerror(errno));
  ::close(listener);
  return Rendezvous(fd, deadline_s);
}

Rendezvous Rendezvous::connect(const std::string& host, uint16_t port, double deadline_s) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) fail("no address for {}: {}", host, ::gai_strerror(error));
  const auto give_up = steady_clock::now() + std::chrono::duration<double>(deadline_s);
  while (true) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(fd, found->ai_addr, found->ai_addrlen) == 0) {
      ::freeaddrinfo(found);
      return Rendezvous(fd, deadline_s);
    }
    const int reason = errno;
    ::close(fd);
    if (steady_clock::now() > give_up) {
      fail("cannot connect to {}:{} within {} s: {}", host, port, deadline_s,
           std::strerror(reason));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void Rendezvous::send_bytes(const void* data, size_t bytes) {
  const auto* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = ::send(fd_, next, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) fail("the connection to the peer: {}", std::strerror(errno));
    next += sent;
    bytes -= static_cast<size_t>(sent);
  }
}

void Rendezvous::receive_bytes(void* data, size_t bytes) {
  auto* next = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::recv(fd_, next, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) fail("the peer has ended");
    if (got < 0) fail("the connection to the peer: {}", std::strerror(errno));
    next += got;
    bytes -= static_cast<size_t>(got);
  }
}

}  // namespace raw_verbs
