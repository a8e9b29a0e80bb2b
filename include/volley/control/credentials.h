#pragma once

// The one place where gRPC servers and channels get their credentials, limits and timers. Every
// port of every daemon is opened, and every channel made, through these functions.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "volley/base/status.h"

namespace volley::control {

enum class TransportSecurity : uint8_t {
  kInsecure,  ///< Plain text; only for loopback addresses and unix sockets.
};

struct SecurityConfig {
  TransportSecurity transport = TransportSecurity::kInsecure;
};

/// Largest message that a server or a channel accepts.
inline constexpr int kMessageBytesMax = 8 << 20;

/// Whether only this machine can reach `listen_address`: "127.0.0.0/8:port", "[::1]:port",
/// "localhost:port", "unix:path". Errors: kInvalidArgument when it is no "host:port" and no unix
/// socket.
Result<bool> is_local_address(const std::string& listen_address);

/// Errors: kInvalidArgument (malformed address); kFailedPrecondition "refusing to listen on
/// 0.0.0.0:7000 without TLS".
Result<std::shared_ptr<grpc::ServerCredentials>> make_server_credentials(
    const SecurityConfig& security, const std::string& listen_address);
Result<std::shared_ptr<grpc::ChannelCredentials>> make_channel_credentials(
    const SecurityConfig& security);

/// Message limits, fixed flow-control windows and keepalive of every server, and no plugins but
/// those that are added after this call. A port belongs to one process: a second one that listens
/// on it fails instead of getting a share of the connections.
void apply_server_defaults(grpc::ServerBuilder& builder);

/// A channel with the message limits, keepalive and reconnect times of the cluster. It connects
/// lazily and shares no connection (and no reconnect backoff) with other channels to the same
/// address. HTTP proxies of the environment are not used.
Result<std::shared_ptr<grpc::Channel>> make_channel(const SecurityConfig& security,
                                                    const std::string& address);

}  // namespace volley::control
