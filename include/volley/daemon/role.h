#pragma once

// The roles of a Volley process, and how it starts, waits and stops. A process usually runs one
// role; with the `local` fabric one process runs them all.
//
// Threads of a process: the main thread (signals, start, stop), per engine an engine thread and its
// pool's workers (see make_colocation() for two engines on one), one pulse thread, one thread of
// the controller's client, and what gRPC makes for itself. While it stops, one thread joins the
// roles, and one drains the frontend.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/config/cluster_config.h"

namespace volley::daemon {

/// A role that runs. Stops in two steps so that several roles of a process can drain at the same
/// time.
class Role {
 public:
  virtual ~Role() = default;
  /// "attention-0"
  virtual const std::string& name() const = 0;
  /// Refuses new work and finishes what runs, until `deadline` (monotonic). Called by one thread;
  /// again, also while another is in join(), to set an earlier deadline.
  virtual void begin_stop(Nanos deadline) = 0;
  /// Returns when everything of the role has ended, shortly after the deadline at the latest.
  virtual void join() = 0;
};

/// Called from any thread when a role cannot go on; the process then stops.
using OnFailure = std::function<void(const Status&)>;

/// What two roles of a process share.
class Colocation;
/// For a process with all roles: with one node of each pool, their engines take turns on one thread
/// and compute with the threads and cores of the node that has more of them. Null with more nodes:
/// each then has threads of its own.
std::shared_ptr<Colocation> make_colocation(const config::ClusterConfig& config);

/// Each loads what it needs, listens and joins the cluster; serving begins when its peers are
/// there, in any order of starting. Errors: as load and listen report them; kNotFound: the file
/// lists no such node.
Result<std::unique_ptr<Role>> start_frontend(const config::ClusterConfig& config,
                                             OnFailure on_failure);
Result<std::unique_ptr<Role>> start_attention(const config::ClusterConfig& config,
                                              const std::string& node, OnFailure on_failure,
                                              std::shared_ptr<Colocation> colocation = nullptr);
Result<std::unique_ptr<Role>> start_expert(const config::ClusterConfig& config,
                                           const std::string& node, OnFailure on_failure,
                                           std::shared_ptr<Colocation> colocation = nullptr);

/// Starts one role inside run_until_stopped().
using Start = std::function<Result<std::unique_ptr<Role>>(OnFailure)>;

/// The life of a daemon: blocks SIGTERM and SIGINT, starts the roles in order, waits for a signal
/// or a failure, stops them in reverse order (all begin, then all join). A second signal cuts the
/// drain short. `on_started` runs when all have started. Call it before any other thread exists.
/// Returns the first failure, or OK after a signal.
Status run_until_stopped(const std::vector<Start>& starts, Nanos stop_timeout,
                         const std::function<void()>& on_started = {});

}  // namespace volley::daemon
