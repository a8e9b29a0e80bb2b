#pragma once

// The processes of one measurement: forked, pinned, talked to over a socket, and never left behind.

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "volley/base/fd.h"
#include "volley/base/ids.h"
#include "volley/base/status.h"

namespace volley::benchmarks {

/// One end of a socket that carries whole messages, each preceded by its length.
class Channel {
 public:
  Channel() = default;
  explicit Channel(UniqueFd socket) : socket_(std::move(socket)) {}

  /// Errors: kUnavailable (the other end is gone), kDeadlineExceeded.
  Status send(std::string_view message, Nanos deadline);
  Result<std::string> receive(Nanos deadline);
  int fd() const { return socket_.get(); }

 private:
  Status wait_for(short events, Nanos deadline);

  UniqueFd socket_;
};

/// Children of this process. Use it while the process has one thread: they are forked without exec.
class Children {
 public:
  struct Options {
    std::string name;             ///< For messages to the operator.
    std::vector<uint32_t> cores;  ///< All threads of the child run on these; empty: on any.
  };

  Children() = default;
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  /// Kills what still runs, and reaps it.
  ~Children();

  /// Runs `body` in a new process, which exits with 0 if it returned OK, else says why on standard
  /// error and exits with 1. The child dies with this process, and its timers are exact (no slack).
  /// Errors: kUnavailable.
  Result<size_t> start(const Options& options, const std::function<Status(Channel&)>& body);

  Status send(size_t child, std::string_view message, Nanos deadline);
  /// The next message of a child. Errors: kUnavailable as soon as any child has ended, by name and
  /// with how it ended; kDeadlineExceeded.
  Result<std::string> receive(size_t child, Nanos deadline);
  /// Waits for the end of all children. Errors: kUnavailable (one failed), kDeadlineExceeded.
  Status finish(Nanos deadline);

 private:
  struct Child {
    std::string name;
    pid_t pid = -1;
    UniqueFd pidfd;
    Channel channel;
    bool running = true;
  };
  /// Reaps the child if it has ended; an error tells how, unless with exit code 0.
  Status reap(Child& child);

  std::vector<Child> children_;
};

/// The cores this process may run on.
std::vector<uint32_t> allowed_cores();
/// Restricts this thread, and the threads it will start, to `cores`. Errors: kInvalidArgument.
Status pin_to_cores(std::span<const uint32_t> cores);

}  // namespace volley::benchmarks
