#pragma once

// Unix sockets in the abstract name space: a name lives as long as its listener and leaves nothing
// in the file system, whatever kills the process.

#include <array>
#include <span>
#include <string>

#include "volley/base/fd.h"

namespace volley::transport {

/// "volley-" and 128 random bits.
std::string invent_socket_name();

/// Errors: kUnavailable.
Result<UniqueFd> listen_abstract(const std::string& name);
/// Errors: kUnavailable (nobody listens), kInvalidArgument (name too long), kResourceExhausted.
Result<UniqueFd> connect_abstract(const std::string& name);

/// The process at the other end must belong to our user, and be ourselves if `same_process`.
/// Errors: kUnauthenticated.
Status check_peer_process(int fd, bool same_process);

/// One packet with up to three descriptors. Errors: kUnavailable.
Status send_packet(int fd, std::span<const std::byte> bytes, std::span<const int> descriptors);

struct Packet {
  size_t bytes = 0;      ///< 0 means that the peer has gone.
  bool nothing = false;  ///< Nothing there yet.
  std::array<UniqueFd, 3> descriptors;
};
/// Receives one packet into `buffer`; a longer packet reads as bytes = buffer.size() + 1.
/// Errors: kUnavailable.
Result<Packet> receive_packet(int fd, std::span<std::byte> buffer);

}  // namespace volley::transport
