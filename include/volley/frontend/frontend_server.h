#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/control/credentials.h"
#include "volley/frontend/inference_service.h"

namespace volley::frontend {

struct FrontendServerOptions {
  std::vector<std::string> listen;  ///< "127.0.0.1:7000"; port 0 picks one.
  control::SecurityConfig security{};
  bool reflection = true;
};

/// The frontend's gRPC server: Inference, grpc.health.v1, reflection, and what else it is given.
///
/// Health: "" and "volley.v1.Inference" are SERVING when a request could be served, "liveness" from
/// the start to the end of the process.
///
/// Stopping is ordered: drain(), then whatever feeds the services is stopped
/// (ControllerService::stop()), then stop(). The services must outlive this object.
class FrontendServer {
 public:
  /// `others` are served on the same ports: ControllerService::services(). Turns the default health
  /// service of gRPC on for this process. Errors: kInvalidArgument (no or malformed address),
  /// kFailedPrecondition (refused address), kUnavailable (port in use).
  static Result<std::unique_ptr<FrontendServer>> start(const FrontendServerOptions& options,
                                                       InferenceService& inference,
                                                       const std::vector<grpc::Service*>& others);
  ~FrontendServer();

  /// The addresses with their real ports, in the order of the options.
  const std::vector<std::string>& addresses() const { return addresses_; }

  /// Health becomes NOT_SERVING, new requests are refused, running ones finish, for `timeout` at
  /// most; then they end with UNAVAILABLE. Blocks.
  void drain(Nanos timeout);
  /// Closes the ports and ends what calls are left. Blocks for about a second at most. Idempotent.
  void stop();

 private:
  FrontendServer(InferenceService& inference, std::unique_ptr<grpc::Server> server,
                 std::vector<std::string> addresses);

  InferenceService& inference_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::string> addresses_;
};

}  // namespace volley::frontend
