#include "tcp_address.h"

#include <netdb.h>

#include <charconv>
#include <memory>

namespace volley::transport {

Result<TcpAddress> parse_tcp_address(const std::string& text, bool look_up) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) {
    return invalid_argument("address '{}' has no port, allowed: host:port", text);
  }
  std::string host = text.substr(0, colon);
  const std::string port = text.substr(colon + 1);
  uint16_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size()) {
    return invalid_argument("address '{}' has port '{}', allowed: 0 to 65535", text, port);
  }
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.empty() || host.find(':') != std::string::npos) {
    return invalid_argument("address '{}': the host is empty or an IPv6 address without brackets",
                            text);
  }
  if (host == "localhost") host = "127.0.0.1";

  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  int failure = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (failure != 0 && look_up) {
    hints.ai_flags = AI_NUMERICSERV;
    failure = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  }
  if (failure != 0) {
    return invalid_argument("address '{}': {}{}", text, ::gai_strerror(failure),
                            look_up ? "" : "; allowed here: a numeric address or localhost");
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  TcpAddress address;
  std::copy_n(reinterpret_cast<const char*>(found->ai_addr), found->ai_addrlen,
              reinterpret_cast<char*>(&address.storage));
  address.length = found->ai_addrlen;
  return address;
}

std::string tcp_address_text(const TcpAddress& address) {
  char host[NI_MAXHOST] = "?";
  char port[NI_MAXSERV] = "?";
  ::getnameinfo(reinterpret_cast<const sockaddr*>(&address.storage), address.length, host,
                sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
  return address.storage.ss_family == AF_INET6 ? fmt::format("[{}]:{}", host, port)
                                               : fmt::format("{}:{}", host, port);
}

}  // namespace volley::transport
