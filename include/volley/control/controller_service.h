#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <vector>

#include "volley/base/status.h"
#include "volley/control/controller_state.h"
#include "volley/v1/control.pb.h"

namespace volley::control {

/// The gRPC services Controller and Operator over a ControllerState.
///
/// Threads: the handlers run on gRPC's threads; a thread of its own ends leases, pushes health and
/// calls the listener. Per stream at most one view is being written and one, the newest, waits.
///
/// Order of life: create, register services() with a server, start it; later stop(), shut the
/// server down, and only then destroy this object.
class ControllerService {
 public:
  /// Called with each new view, from one thread, newest only; must return soon. Link keys are not
  /// in it.
  using ViewListener = std::function<void(const v1::ClusterView&)>;

  /// `term` comes from take_next_term(). `listener` may be null.
  ControllerService(ControllerOptions options, uint32_t term, ViewListener listener);
  ~ControllerService();

  std::vector<grpc::Service*> services();
  v1::ClusterView view() const;
  /// Ends every Join stream with UNAVAILABLE, refuses new ones, and waits up to `timeout` until
  /// they are gone. The listener is not called after it.
  void stop(Nanos timeout);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::control
