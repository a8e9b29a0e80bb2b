#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <thread>

#include "volley/base/clock.h"
#include "volley/base/fd.h"
#include "volley/daemon/role.h"

namespace volley::daemon {
namespace {

/// SIGTERM and SIGINT as a file descriptor; other threads, made later, inherit the blocked mask.
class StopSignals {
 public:
  StopSignals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    fd_ = UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    ::signal(SIGPIPE, SIG_IGN);
  }
  int fd() const { return fd_.get(); }
  /// The signal that came, or 0.
  int take() {
    signalfd_siginfo info;
    return ::read(fd_.get(), &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo)
                                                                : 0;
  }

 private:
  UniqueFd fd_;
};

/// A flag that any thread sets once and that can be polled.
class Event {
 public:
  int fd() const { return fd_.get(); }
  void set() {
    const uint64_t one = 1;
    // Cannot fail: the counter of an eventfd is far from full.
    [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
  }
  bool is_set() const {
    pollfd poll{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&poll, 1, 0) == 1;
  }

 private:
  UniqueFd fd_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

/// The first failure that a role reports. Shared with the roles' threads, which may outlive the
/// wait.
class Failure {
 public:
  void set(const Status& failed) {
    const std::lock_guard lock(mutex_);
    if (!status_.ok()) return;
    status_ = failed;
    event_.set();
  }
  Status get() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }
  const Event& event() const { return event_; }

 private:
  mutable std::mutex mutex_;
  Status status_;  // Guarded by mutex_.
  Event event_;
};

void wait_for_either(const StopSignals& signals, const Event& event) {
  std::array<pollfd, 2> fds{pollfd{.fd = signals.fd(), .events = POLLIN, .revents = 0},
                            pollfd{.fd = event.fd(), .events = POLLIN, .revents = 0}};
  ::poll(fds.data(), fds.size(), -1);
}

}  // namespace

Status run_until_stopped(const std::vector<Start>& starts, Nanos stop_timeout,
                         const std::function<void()>& on_started) {
  StopSignals signals;
  const auto failure = std::make_shared<Failure>();  // Owned here and by every role's OnFailure.
  std::vector<std::unique_ptr<Role>> roles;
  int signal = 0;
  for (const Start& start : starts) {
    auto role = start([failure](const Status& status) { failure->set(status); });
    if (!role.ok()) {
      failure->set(role.status());
      break;
    }
    roles.push_back(std::move(role).value());
    if ((signal = signals.take()) != 0) break;  // Loading can take long; it need not go on.
  }
  if (signal == 0 && failure->get().ok()) {
    if (on_started) on_started();
    while (signal == 0 && failure->get().ok()) {
      wait_for_either(signals, failure->event());
      signal = signals.take();
    }
  }
  const Status result = failure->get();
  if (signal != 0) spdlog::info("stopping on signal {}; what runs may finish", signal);
  const Nanos deadline = result.ok() ? monotonic_now() + stop_timeout : monotonic_now();
  std::ranges::reverse(roles);
  for (auto& role : roles) role->begin_stop(deadline);
  // Joined on a thread of its own, so that a second signal can cut the drain short.
  Event joined;
  std::jthread joiner([&] {
    for (auto& role : roles) role->join();
    joined.set();
  });
  while (!joined.is_set()) {
    wait_for_either(signals, joined);
    if (signals.take() != 0) {
      spdlog::warn("stopping at once on a second signal");
      for (auto& role : roles) role->begin_stop(monotonic_now());
    }
  }
  return result;
}

}  // namespace volley::daemon
