#include "waiter.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "volley/base/check.h"

namespace volley::transport {

Status Waiter::init() {
  epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return resource_exhausted("epoll_create1: {}", errno_text(errno));
  wake_event_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_event_) return resource_exhausted("eventfd: {}", errno_text(errno));
  // Edge triggered: every write is an event of its own and nobody has to read the counter down.
  return add(wake_event_.get(), EPOLLIN | EPOLLET, kWakeTag);
}

Status Waiter::add(int fd, uint32_t epoll_events, uint64_t tag) {
  epoll_event event{};
  event.events = epoll_events;
  event.data.u64 = tag;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return resource_exhausted("epoll_ctl: {}", errno_text(errno));
  }
  return ok_status();
}

void Waiter::modify(int fd, uint32_t epoll_events, uint64_t tag) {
  epoll_event event{};
  event.events = epoll_events;
  event.data.u64 = tag;
  VOLLEY_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
}

void Waiter::remove(int fd) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

bool Waiter::fetch() {
  if (fetched_ == 0) {
    fetched_ = std::max(
        0, ::epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), 0));
  }
  return fetched_ > 0;
}

void Waiter::sleep_until(Nanos deadline) {
  const Nanos remaining = deadline - monotonic_now();
  if (remaining <= 0 || fetched_ > 0) return;
  const timespec timeout{.tv_sec = static_cast<time_t>(remaining / kSecond),
                         .tv_nsec = static_cast<long>(remaining % kSecond)};
  const int count = ::epoll_pwait2(epoll_.get(), events_.data(), static_cast<int>(events_.size()),
                                   &timeout, nullptr);
  fetched_ = std::max(0, count);
  // A signal ends the wait early, which the contract allows.
  if (count >= 0 || errno == EINTR) return;
  // Before Linux 5.11, and where a container forbids what it does not know, only ppoll takes
  // nanoseconds; an epoll set can itself be polled.
  pollfd set{.fd = epoll_.get(), .events = POLLIN, .revents = 0};
  ::ppoll(&set, 1, &timeout, nullptr);
}

void Waiter::wake() {
  woken_.store(true);
  if (!asleep_.load()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_event_.get(), &one, sizeof one);
}

void Waiter::pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

void Waiter::spin_paid() {
  misses_ = 0;
  retry_after_ = kRetryMin;
}

void Waiter::slept(Nanos asleep, bool had_spun) {
  static const bool can_spin = std::thread::hardware_concurrency() > 1;
  if (had_spun) {
    if (++misses_ < kMissesMax) return;
    spin_ = false;
    retry_in_ = retry_after_;
    retry_after_ = std::min(2 * retry_after_, kRetryMax);
  } else if (asleep <= kShortSleep && --retry_in_ <= 0) {
    spin_ = can_spin;
    misses_ = kMissesMax - 1;  // One try.
  }
}

}  // namespace volley::transport
