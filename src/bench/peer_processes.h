#pragma once

// Forked children that run a function, end with their parent and are never left behind.

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "volley/base/fd.h"
#include "volley/base/ids.h"

namespace volley::bench {

class PeerProcesses {
 public:
  PeerProcesses() = default;
  PeerProcesses(const PeerProcesses&) = delete;
  PeerProcesses& operator=(const PeerProcesses&) = delete;
  /// Kills what still runs, and reaps it.
  ~PeerProcesses();

  /// Forks a child that calls `body` and ends with exit code 0 when that returns OK, else 1.
  /// This process must have one thread. Errors: kUnavailable.
  Status start(const std::string& name, const std::function<Status()>& body);

  /// Waits until all have ended with exit code 0. Errors: kUnavailable as soon as one has not, with
  /// the name and the end of each that failed, and what `explain(index)` says about it;
  /// kDeadlineExceeded.
  Status wait(Nanos deadline, const std::function<std::string(size_t)>& explain);

 private:
  struct Child {
    std::string name;
    pid_t pid = -1;
    UniqueFd pidfd;
    bool running = true;
    std::string failure;  ///< "killed by signal 9"
  };
  /// Whether a child has ended badly.
  bool reap();
  void sleep_until(Nanos deadline) const;

  std::vector<Child> children_;
};

}  // namespace volley::bench
