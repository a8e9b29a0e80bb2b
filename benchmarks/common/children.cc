#include "common/children.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "volley/base/clock.h"

namespace volley::benchmarks {
namespace {

// Far above any message here; keeps a broken length from asking for absurd memory.
constexpr uint64_t kMessageBytesMax = uint64_t{1} << 30;

std::string how_it_ended(int status) {
  return WIFEXITED(status) ? fmt::format("ended with exit code {}", WEXITSTATUS(status))
                           : fmt::format("was killed by signal {}", WTERMSIG(status));
}

int remaining_ms(Nanos deadline) {
  const Nanos remaining = deadline - monotonic_now();
  return remaining <= 0 ? 0 : static_cast<int>(remaining / kMillisecond) + 1;
}

Status prepare_child(pid_t parent, const Children::Options& options) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died between the fork and the line above.
  if (::getppid() != parent) return failed_precondition("the parent process {} is gone", parent);
  // By default the kernel ends sleeps up to 50 us late, which would distort short emulated delays.
  ::prctl(PR_SET_TIMERSLACK, 1);
  return options.cores.empty() ? ok_status() : pin_to_cores(options.cores);
}

}  // namespace

Status Channel::wait_for(short events, Nanos deadline) {
  while (true) {
    pollfd set{.fd = socket_.get(), .events = events, .revents = 0};
    const int count = ::poll(&set, 1, remaining_ms(deadline));
    if (count > 0) return ok_status();
    if (count < 0 && errno != EINTR) return unavailable("poll: {}", errno_text(errno));
    if (monotonic_now() >= deadline) {
      return make_status(StatusCode::kDeadlineExceeded, "no progress before the deadline");
    }
  }
}

Status Channel::send(std::string_view message, Nanos deadline) {
  const uint64_t length = message.size();
  std::string framed(sizeof length, '\0');
  std::memcpy(framed.data(), &length, sizeof length);
  framed.append(message);
  std::string_view rest = framed;
  while (!rest.empty()) {
    VOLLEY_RETURN_IF_ERROR(wait_for(POLLOUT, deadline));
    const ssize_t sent =
        ::send(socket_.get(), rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      rest.remove_prefix(static_cast<size_t>(sent));
    } else if (errno != EAGAIN && errno != EINTR) {
      return unavailable("send: {}", errno_text(errno));
    }
  }
  return ok_status();
}

Result<std::string> Channel::receive(Nanos deadline) {
  uint64_t length = 0;
  std::string message(sizeof length, '\0');
  size_t have = 0;
  bool sized = false;
  while (true) {
    if (have == message.size()) {
      if (sized) return message;
      std::memcpy(&length, message.data(), sizeof length);
      if (length > kMessageBytesMax) return data_loss("a message of {} bytes", length);
      sized = true;
      message.assign(length, '\0');
      have = 0;
      continue;
    }
    VOLLEY_RETURN_IF_ERROR(wait_for(POLLIN, deadline));
    const ssize_t got =
        ::recv(socket_.get(), message.data() + have, message.size() - have, MSG_DONTWAIT);
    if (got == 0) return unavailable("the other process has closed its end");
    if (got > 0) {
      have += static_cast<size_t>(got);
    } else if (errno != EAGAIN && errno != EINTR) {
      return unavailable("recv: {}", errno_text(errno));
    }
  }
}

Children::~Children() {
  for (const Child& child : children_) {
    if (child.running) ::kill(child.pid, SIGKILL);
  }
  for (const Child& child : children_) {
    if (child.running) ::waitpid(child.pid, nullptr, 0);
  }
}

Result<size_t> Children::start(const Options& options,
                               const std::function<Status(Channel&)>& body) {
  int sockets[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return unavailable("socketpair: {}", errno_text(errno));
  }
  UniqueFd ours(sockets[0]), theirs(sockets[1]);
  std::fflush(nullptr);  // Or the child would write what is buffered here a second time.
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return unavailable("cannot start {}: {}", options.name, errno_text(errno));
  if (pid == 0) {
    ours.reset();
    // What belongs to the siblings' parent; the processes themselves are not ours to end.
    for (Child& sibling : children_) {
      sibling.running = false;
      sibling.channel = Channel();
      sibling.pidfd.reset();
    }
    Channel channel(std::move(theirs));
    Status status = prepare_child(parent, options);
    if (status.ok()) status = body(channel);
    if (!status.ok()) {
      std::fprintf(stderr, "%s: %s\n", options.name.c_str(), message_of(status).c_str());
    }
    std::fflush(nullptr);
    ::_exit(status.ok() ? 0 : 1);
  }
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) {
    const int reason = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return unavailable("cannot watch {}: {}", options.name, errno_text(reason));
  }
  children_.push_back({.name = options.name,
                       .pid = pid,
                       .pidfd = std::move(pidfd),
                       .channel = Channel(std::move(ours))});
  return children_.size() - 1;
}

Status Children::reap(Child& child) {
  int status = 0;
  if (!child.running || ::waitpid(child.pid, &status, WNOHANG) != child.pid) return ok_status();
  child.running = false;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return ok_status();
  return unavailable("the process {} {}", child.name, how_it_ended(status));
}

Status Children::send(size_t child, std::string_view message, Nanos deadline) {
  const Status sent = children_[child].channel.send(message, deadline);
  if (sent.ok()) return sent;
  VOLLEY_RETURN_IF_ERROR(reap(children_[child]));
  return annotate(sent, children_[child].name);
}

Result<std::string> Children::receive(size_t child, Nanos deadline) {
  while (true) {
    std::vector<pollfd> set{{.fd = children_[child].channel.fd(), .events = POLLIN, .revents = 0}};
    for (const Child& each : children_) {
      if (each.running) set.push_back({.fd = each.pidfd.get(), .events = POLLIN, .revents = 0});
    }
    const int count = ::poll(set.data(), set.size(), remaining_ms(deadline));
    if (count < 0 && errno != EINTR) return unavailable("poll: {}", errno_text(errno));
    if (count > 0 && (set[0].revents & POLLIN) != 0) {
      Result<std::string> message = children_[child].channel.receive(deadline);
      if (message.ok() || message.status().code() != StatusCode::kUnavailable) return message;
      // Its end closed: the process is ending; how, its exit code tells in a moment.
    }
    for (Child& each : children_) VOLLEY_RETURN_IF_ERROR(reap(each));
    if (!children_[child].running) {
      return unavailable("the process {} ended without an answer", children_[child].name);
    }
    if (monotonic_now() >= deadline) {
      return make_status(StatusCode::kDeadlineExceeded, "the process {} did not answer in time",
                         children_[child].name);
    }
    if (count > 0 && (set[0].revents & POLLIN) != 0) ::usleep(1000);
  }
}

Status Children::finish(Nanos deadline) {
  for (Child& child : children_) {
    while (child.running) {
      pollfd set{.fd = child.pidfd.get(), .events = POLLIN, .revents = 0};
      ::poll(&set, 1, remaining_ms(deadline));
      VOLLEY_RETURN_IF_ERROR(reap(child));
      if (child.running && monotonic_now() >= deadline) {
        return make_status(StatusCode::kDeadlineExceeded, "the process {} did not end in time",
                           child.name);
      }
    }
  }
  return ok_status();
}

std::vector<uint32_t> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<uint32_t> cores;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (uint32_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

Status pin_to_cores(std::span<const uint32_t> cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const uint32_t core : cores) {
    if (core >= CPU_SETSIZE) return invalid_argument("there is no core {}", core);
    CPU_SET(core, &set);
  }
  if (::sched_setaffinity(0, sizeof set, &set) != 0) {
    return invalid_argument("cannot run on core{} {}: {}", cores.size() == 1 ? "" : "s",
                            fmt::join(cores, ","), errno_text(errno));
  }
  return ok_status();
}

}  // namespace volley::benchmarks
