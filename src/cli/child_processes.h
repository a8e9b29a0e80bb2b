#pragma once

// Children of `volley up`: started with it, ended with it, never left behind.

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "volley/base/fd.h"
#include "volley/base/ids.h"
#include "volley/base/status.h"

namespace volley::cli {

class ChildProcesses {
 public:
  struct Child {
    std::string name;
    pid_t pid = -1;
    UniqueFd pidfd;
    bool running = true;
  };
  ChildProcesses() = default;
  ChildProcesses(const ChildProcesses&) = delete;
  ChildProcesses& operator=(const ChildProcesses&) = delete;
  /// Kills what still runs, and reaps it.
  ~ChildProcesses();

  /// Starts this very binary with `arguments`. Errors: kUnavailable.
  Status start(const std::string& name, const std::vector<std::string>& arguments);
  /// Sends a signal to every child that runs.
  void signal_all(int signal);
  /// One child that has ended, with words for how ("exit code 2", "killed by signal 9"); none:
  /// nothing ended.
  struct Ended {
    std::string name;
    std::string how;
    bool clean = false;  ///< Exit code 0.
  };
  std::optional<Ended> reap();
  size_t running_count() const;
  /// File descriptors that become readable when a child ends.
  std::vector<int> watch() const;

 private:
  std::vector<Child> children_;
};

/// Called first in a child: it ends with its parent, even when that is killed.
/// Errors: kFailedPrecondition when `parent` is already gone.
Status end_with_parent(pid_t parent);

}  // namespace volley::cli
