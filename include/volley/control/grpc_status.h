#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "volley/base/status.h"

namespace volley::control {

/// The codes are the same numbers on both sides.
inline grpc::Status to_grpc(const Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message_of(status));
}
inline Status from_grpc(const grpc::Status& status) {
  return Status(static_cast<StatusCode>(status.error_code()), status.error_message());
}

}  // namespace volley::control
