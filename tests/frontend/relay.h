#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "volley/base/check.h"
#include "volley/base/fd.h"

namespace volley::frontend {

/// Relays TCP connections to a port of this machine until it is cut, which looks to both ends like
/// the death of the other process: resets, and refused connections from then on.
class Relay {
 public:
  explicit Relay(int target_port) : target_port_(target_port) {
    listener_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = local(0);
    socklen_t length = sizeof(address);
    VOLLEY_CHECK(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
    VOLLEY_CHECK(listen(listener_.get(), 16) == 0);
    VOLLEY_CHECK(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~Relay() { cut(); }

  int port() const { return port_; }
  void cut() {
    cut_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  static sockaddr_in local(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void accept_one() {
    UniqueFd client(accept(listener_.get(), nullptr, nullptr));
    UniqueFd target(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = local(target_port_);
    if (connect(target.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
      return;
    pairs_.emplace_back(std::move(client), std::move(target));
  }

  // False when one of the ends has closed.
  static bool copy(int from, int to) {
    char bytes[16384];
    const ssize_t count = recv(from, bytes, sizeof(bytes), 0);
    for (ssize_t sent = 0; sent < count;) {
      const ssize_t part = send(to, bytes + sent, static_cast<size_t>(count - sent), MSG_NOSIGNAL);
      if (part <= 0) return false;
      sent += part;
    }
    return count > 0;
  }

  void run() {
    while (!cut_) {
      std::vector<pollfd> polled{{listener_.get(), POLLIN, 0}};
      for (const auto& [client, target] : pairs_) {
        polled.push_back({client.get(), POLLIN, 0});
        polled.push_back({target.get(), POLLIN, 0});
      }
      if (poll(polled.data(), polled.size(), 5) <= 0) continue;
      for (size_t i = pairs_.size(); i-- > 0;) {
        auto& [client, target] = pairs_[i];
        const bool open = (polled[1 + 2 * i].revents == 0 || copy(client.get(), target.get())) &&
                          (polled[2 + 2 * i].revents == 0 || copy(target.get(), client.get()));
        if (!open) pairs_.erase(pairs_.begin() + static_cast<long>(i));
      }
      if (polled[0].revents != 0) accept_one();
    }
    const linger reset{.l_onoff = 1, .l_linger = 0};
    for (const auto& [client, target] : pairs_) {
      setsockopt(client.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
      setsockopt(target.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    }
    pairs_.clear();
    listener_.reset();
  }

  const int target_port_;
  int port_ = 0;
  UniqueFd listener_;
  std::vector<std::pair<UniqueFd, UniqueFd>> pairs_;
  std::atomic<bool> cut_ = false;
  std::thread thread_;
};

}  // namespace volley::frontend
