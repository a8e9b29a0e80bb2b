#include "unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "volley/base/clock.h"
#include "volley/base/digest.h"

namespace volley::transport {
namespace {

constexpr size_t kDescriptorsMax = 3;

socklen_t abstract_address(const std::string& name, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  // A zero byte in front makes the name abstract; its length is part of the address length.
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

Result<UniqueFd> make_socket() {
  // Sequenced packets: a hello or a welcome arrives whole, with its descriptors, or not at all.
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return resource_exhausted("socket: {}", errno_text(errno));
  return fd;
}

}  // namespace

std::string invent_socket_name() {
  return "volley-" + to_hex(random_u64()) + to_hex(random_u64());
}

Result<UniqueFd> listen_abstract(const std::string& name) {
  VOLLEY_ASSIGN_OR_RETURN(UniqueFd fd, make_socket());
  sockaddr_un address;
  const socklen_t length = abstract_address(name, address);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    return unavailable("listening on the abstract socket {}: {}", name, errno_text(errno));
  }
  return fd;
}

Result<UniqueFd> connect_abstract(const std::string& name) {
  sockaddr_un address;
  if (name.empty() || name.size() >= sizeof address.sun_path) {
    return invalid_argument("address '{}' has {} bytes, allowed: 1 to {}", name, name.size(),
                            sizeof address.sun_path - 1);
  }
  VOLLEY_ASSIGN_OR_RETURN(UniqueFd fd, make_socket());
  const socklen_t length = abstract_address(name, address);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return unavailable("connecting to {}: {}", name, errno_text(errno));
  }
  return fd;
}

Status check_peer_process(int fd, bool same_process) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return make_status(StatusCode::kUnauthenticated, "SO_PEERCRED: {}", errno_text(errno));
  }
  if (peer.uid != ::geteuid()) {
    return make_status(StatusCode::kUnauthenticated, "the peer runs as user {}, not {}", peer.uid,
                       ::geteuid());
  }
  if (same_process && peer.pid != ::getpid()) {
    return make_status(StatusCode::kUnauthenticated, "the peer is process {}, not this one",
                       peer.pid);
  }
  return ok_status();
}

Status send_packet(int fd, std::span<const std::byte> bytes, std::span<const int> descriptors) {
  iovec data{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsMax * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
  }
  if (::sendmsg(fd, &message, MSG_NOSIGNAL) < 0) {
    return unavailable("sending the handshake: {}", errno_text(errno));
  }
  return ok_status();
}

Result<Packet> receive_packet(int fd, std::span<std::byte> buffer) {
  iovec data{buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsMax * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t received = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  Packet packet;
  if (received < 0) {
    if (errno != EAGAIN && errno != EINTR) return unavailable("{}", errno_text(errno));
    packet.nothing = true;
    return packet;
  }
  // What the kernel has installed is ours to close, wanted or not.
  size_t count = 0;
  for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr;
       item = CMSG_NXTHDR(&message, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    const size_t descriptors = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < descriptors && count < packet.descriptors.size(); ++i) {
      int descriptor;
      std::memcpy(&descriptor, CMSG_DATA(item) + i * sizeof(int), sizeof(int));
      packet.descriptors[count++] = UniqueFd(descriptor);
    }
  }
  packet.bytes = static_cast<size_t>(received) + ((message.msg_flags & MSG_TRUNC) != 0 ? 1 : 0);
  return packet;
}

}  // namespace volley::transport
