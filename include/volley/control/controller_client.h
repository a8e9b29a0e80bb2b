#pragma once

#include <functional>
#include <memory>
#include <string>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/control/credentials.h"
#include "volley/v1/control.pb.h"

namespace volley::control {

struct ControllerClientOptions {
  std::string address;
  SecurityConfig security{};
  v1::NodeRegistration registration;
  /// The first view must come within this time, else the attempt counts as failed.
  Nanos join_timeout = 5 * kSecond;
  Nanos backoff_min = 100 * kMillisecond;
  /// With the channel's own reconnect time this stays below a lease of the default report interval, so that
  /// after a restart of the controller all nodes are back before its view is settled.
  Nanos backoff_max = kSecond;
  /// How long a name that a live incarnation holds is asked for again: a node that was restarted
  /// waits for the lease of its former life.
  Nanos name_conflict_timeout = 15 * kSecond;
};

/// Keeps one node joined: registers, reports its health, and delivers the views. The controller may
/// start later, restart or be away; meanwhile the last view stays in force.
///
/// Threads: one of its own, on which the callbacks run, one at a time. They must return within a
/// fraction of the report interval and must not call stop().
class ControllerClient {
 public:
  struct Callbacks {
    /// The health to report, asked for before each report.
    std::function<v1::NodeHealth()> health;
    /// Each new view; only the newest of several that come at once. The same version may come again
    /// with newer health or a changed serving flag. After a restart of the controller its views are
    /// held back until they are settled (one lease), so that members which join again do not seem
    /// gone.
    std::function<void(const v1::ClusterView&)> on_view;
    /// The controller refused this node for a reason that trying again does not mend:
    /// kFailedPrecondition, kInvalidArgument, kAlreadyExists (after name_conflict_timeout),
    /// kUnauthenticated, kPermissionDenied, kUnimplemented. The client has stopped trying. Called
    /// once at most.
    std::function<void(const Status&)> on_refused;
    /// The connection state changed: OK when joined, else why not and being retried. For logs; may
    /// be null.
    std::function<void(const Status&)> on_connection;
    /// The profile to report with the health; may be null.
    std::function<v1::NodeProfile()> profile{};
  };

  /// Errors: kInvalidArgument (empty address).
  static Result<std::unique_ptr<ControllerClient>> start(ControllerClientOptions options,
                                                         Callbacks callbacks);
  ~ControllerClient();

  /// Reports at once instead of at the next interval: the node has become ready, or unready.
  void report_now();
  /// Leaves the cluster (the controller removes the node at once) and ends the thread; no callback
  /// runs after it. Returns within half a second, whatever the controller does.
  void stop();

 private:
  struct Impl;
  explicit ControllerClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::control
