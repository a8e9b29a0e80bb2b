#include "volley/control/credentials.h"

#include <arpa/inet.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>

#include <charconv>

namespace volley::control {
namespace {

// A peer that vanishes without closing its connection is noticed within the sum of the two.
constexpr int kKeepaliveTimeMs = 5'000;
constexpr int kKeepaliveTimeoutMs = 3'000;
// Clients may ping this often without being cut off; above our own keepalive rate, below a flood.
constexpr int kPingIntervalMinMs = 1'000;
constexpr int kReconnectMinMs = 100;
constexpr int kReconnectMaxMs = 1'000;
constexpr int kConnectTimeoutMs = 2'000;

// A library that is linked can put plugins into every server of the process, as gRPC's reflection
// does. Servers get what they ask for instead.
class NoPlugins final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->clear();
  }
};

struct HostPort {
  std::string host;
  uint16_t port = 0;
};

Result<HostPort> split_host_port(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    return invalid_argument("address '{}' is not host:port", address);
  }
  HostPort result{.host = address.substr(0, colon)};
  const char* begin = address.data() + colon + 1;
  const char* end = address.data() + address.size();
  const auto parsed = std::from_chars(begin, end, result.port);
  if (begin == end || parsed.ec != std::errc() || parsed.ptr != end) {
    return invalid_argument("address '{}': the port must be a number in [0, 65535]", address);
  }
  const bool bracketed = result.host.front() == '[';
  if (bracketed != (result.host.back() == ']') ||
      (!bracketed && result.host.find(':') != std::string::npos)) {
    return invalid_argument("address '{}': an IPv6 host must stand in brackets", address);
  }
  if (bracketed) result.host = result.host.substr(1, result.host.size() - 2);
  return result;
}

}  // namespace

Result<bool> is_local_address(const std::string& listen_address) {
  if (listen_address.starts_with("unix:") || listen_address.starts_with("unix-abstract:"))
    return true;
  VOLLEY_ASSIGN_OR_RETURN(const HostPort parts, split_host_port(listen_address));
  if (parts.host == "localhost") return true;
  in_addr v4{};
  if (inet_pton(AF_INET, parts.host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6{};
  if (inet_pton(AF_INET6, parts.host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6) != 0;
  return false;
}

Result<std::shared_ptr<grpc::ServerCredentials>> make_server_credentials(
    const SecurityConfig& security, const std::string& listen_address) {
  VOLLEY_ASSIGN_OR_RETURN(const bool local, is_local_address(listen_address));
  switch (security.transport) {
    case TransportSecurity::kInsecure:
      if (!local) {
        return failed_precondition("refusing to listen on {} without TLS", listen_address);
      }
      return grpc::InsecureServerCredentials();
  }
  return internal_error("unknown transport security {}", static_cast<int>(security.transport));
}

Result<std::shared_ptr<grpc::ChannelCredentials>> make_channel_credentials(
    const SecurityConfig& security) {
  switch (security.transport) {
    case TransportSecurity::kInsecure:
      return grpc::InsecureChannelCredentials();
  }
  return internal_error("unknown transport security {}", static_cast<int>(security.transport));
}

void apply_server_defaults(grpc::ServerBuilder& builder) {
  builder.SetOption(std::make_unique<NoPlugins>());
  // Windows that grow with the bandwidth would let megabytes pile up for a peer that does not read.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingIntervalMinMs);
}

Result<std::shared_ptr<grpc::Channel>> make_channel(const SecurityConfig& security,
                                                    const std::string& address) {
  if (address.empty()) return invalid_argument("the address to connect to is empty");
  VOLLEY_ASSIGN_OR_RETURN(auto credentials, make_channel_credentials(security));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMinMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMaxMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

}  // namespace volley::control
