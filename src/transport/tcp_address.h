#pragma once

#include <sys/socket.h>

#include <string>

#include "volley/base/status.h"

namespace volley::transport {

struct TcpAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

/// "127.0.0.1:4000", "[::1]:4000", "localhost:4000" (127.0.0.1); with `look_up` any host name,
/// which may block on the name service. Errors: kInvalidArgument.
Result<TcpAddress> parse_tcp_address(const std::string& text, bool look_up);

/// Numeric, in the form that parse_tcp_address() reads.
std::string tcp_address_text(const TcpAddress& address);

}  // namespace volley::transport
