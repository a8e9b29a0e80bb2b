#include "peer_processes.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "volley/base/clock.h"

namespace volley::bench {
namespace {

/// When one peer dies the others fail because of it, a moment earlier or later: so long the parent
/// waits before it tells which ones have ended.
constexpr Nanos kGatherFailures = 100 * kMillisecond;

}  // namespace

PeerProcesses::~PeerProcesses() {
  for (const Child& child : children_) {
    if (child.running) ::kill(child.pid, SIGKILL);
  }
  for (const Child& child : children_) {
    if (child.running) ::waitpid(child.pid, nullptr, 0);
  }
}

Status PeerProcesses::start(const std::string& name, const std::function<Status()>& body) {
  std::fflush(nullptr);  // Else the child has a copy of what is buffered.
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return unavailable("cannot fork {}: {}", name, errno_text(errno));
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    // The parent may have died before the line above. No destructors and no handlers of the parent
    // run here: what they would end is the parent's.
    if (::getppid() != parent) ::_exit(1);
    ::_exit(body().ok() ? 0 : 1);
  }
  children_.push_back({.name = name, .pid = pid, .pidfd = {}, .running = true, .failure = {}});
  children_.back().pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!children_.back().pidfd) return unavailable("cannot watch {}: {}", name, errno_text(errno));
  return ok_status();
}

bool PeerProcesses::reap() {
  for (Child& child : children_) {
    int status = 0;
    if (!child.running || ::waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
    child.running = false;
    if (WIFSIGNALED(status)) {
      child.failure = fmt::format("killed by signal {}", WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0) {
      child.failure = fmt::format("exit code {}", WEXITSTATUS(status));
    }
  }
  return std::any_of(children_.begin(), children_.end(),
                     [](const Child& child) { return !child.failure.empty(); });
}

void PeerProcesses::sleep_until(Nanos deadline) const {
  std::vector<pollfd> fds;
  for (const Child& child : children_) {
    if (child.running) fds.push_back({.fd = child.pidfd.get(), .events = POLLIN, .revents = 0});
  }
  const Nanos remaining = std::max<Nanos>(0, deadline - monotonic_now());
  const timespec timeout{.tv_sec = static_cast<time_t>(remaining / kSecond),
                         .tv_nsec = static_cast<long>(remaining % kSecond)};
  ::ppoll(fds.data(), fds.size(), &timeout, nullptr);
}

Status PeerProcesses::wait(Nanos deadline, const std::function<std::string(size_t)>& explain) {
  while (!reap()) {
    if (std::none_of(children_.begin(), children_.end(),
                     [](const Child& child) { return child.running; })) {
      return ok_status();
    }
    if (monotonic_now() >= deadline) {
      return make_status(StatusCode::kDeadlineExceeded, "the peers did not end in time");
    }
    sleep_until(deadline);
  }
  const Nanos gather_end = monotonic_now() + kGatherFailures;
  while (monotonic_now() < gather_end &&
         std::any_of(children_.begin(), children_.end(),
                     [](const Child& child) { return child.running; })) {
    sleep_until(gather_end);
    reap();
  }
  std::string text;
  for (size_t i = 0; i < children_.size(); ++i) {
    if (children_[i].failure.empty()) continue;
    const std::string why = explain(i);
    text += fmt::format("{}{}: {}{}", text.empty() ? "" : "; ", children_[i].name,
                        children_[i].failure, why.empty() ? "" : " (" + why + ")");
  }
  return unavailable("{}", text);
}

}  // namespace volley::bench
