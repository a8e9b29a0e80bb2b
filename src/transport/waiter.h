#pragma once

// How an engine thread waits: it polls briefly when messages have been coming fast, then sleeps in
// the kernel on one epoll set. Waking it costs a system call only while it sleeps.

#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "volley/base/clock.h"
#include "volley/base/fd.h"

namespace volley::transport {

class Waiter {
 public:
  /// Errors: kResourceExhausted.
  Status init();

  /// Registers `fd` under `tag`. Errors: kResourceExhausted.
  Status add(int fd, uint32_t epoll_events, uint64_t tag);
  void modify(int fd, uint32_t epoll_events, uint64_t tag);
  void remove(int fd);

  /// Asks the kernel for events unless some are still unhandled; true if there are any.
  bool fetch();
  /// Whether events that were fetched wait for drain().
  bool pending() const { return fetched_ > 0; }
  /// Calls handle(tag, epoll_events) for the events fetched. A tag may name something that an
  /// earlier call of `handle` has removed.
  template <class Handle>
  void drain(Handle handle) {
    for (int i = 0; i < fetched_; ++i) {
      if (events_[i].data.u64 != kWakeTag) handle(events_[i].data.u64, events_[i].events);
    }
    fetched_ = 0;
  }

  /// Returns once `ready()` holds, after wake(), after an event of the epoll set, or at `deadline`.
  /// Before sleeping it calls `arm()`, after which whoever makes ready() true must also raise an
  /// event; afterwards `disarm()`.
  template <class Ready, class Arm, class Disarm>
  void wait(Nanos deadline, Ready ready, Arm arm, Disarm disarm) {
    const Nanos start = monotonic_now();
    const bool spinning = spin_;
    const Nanos spin_end = start + (spinning ? kSpin : 0);
    Nanos now = start;
    do {
      if (woken_.exchange(false)) return;
      if (ready()) {
        if (spinning) spin_paid();
        return;
      }
      if (now >= deadline) return;
      pause();
      now = monotonic_now();
    } while (now < spin_end);

    // Either we see what the other thread stored, or it sees that we sleep: both sides store first
    // and load second, all sequentially consistent.
    asleep_.store(true);
    arm();
    if (!woken_.load() && !ready()) sleep_until(deadline);
    asleep_.store(false);
    disarm();
    woken_.store(false);
    slept(monotonic_now() - now, spinning);
  }

  /// Thread-safe.
  void wake();

  static constexpr uint64_t kWakeTag = ~uint64_t{0};

 private:
  // Longer than a hand-over between two running threads or a loopback round trip, shorter than what
  // a sleep and its wake-up cost.
  static constexpr Nanos kSpin = 30 * kMicrosecond;
  // After a sleep up to this long, polling might have been better.
  static constexpr Nanos kShortSleep = 60 * kMicrosecond;
  // Polling in vain so often in a row ends it.
  static constexpr int kMissesMax = 4;
  // So many short sleeps until polling is tried again; doubled each time that it fails. Where the
  // two ends share a core, polling keeps the peer from running and never pays, however short the
  // sleeps.
  static constexpr int kRetryMin = 16;
  static constexpr int kRetryMax = 4096;

  static void pause();
  void sleep_until(Nanos deadline);
  void spin_paid();
  void slept(Nanos asleep, bool had_spun);

  UniqueFd epoll_;
  UniqueFd wake_event_;
  std::atomic<bool> asleep_{false};
  std::atomic<bool> woken_{false};
  bool spin_ = false;
  int misses_ = 0;
  int retry_in_ = kRetryMin;  // Short sleeps; counts while we do not spin.
  int retry_after_ = kRetryMin;
  int fetched_ = 0;
  std::array<epoll_event, 64> events_{};
};

}  // namespace volley::transport
