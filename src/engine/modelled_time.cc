#include "modelled_time.h"

#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

#include "volley/base/clock.h"

namespace volley::engine {
namespace {

constexpr Nanos kLogInterval = 10 * kSecond;

class SleepingClock final : public ComputeClock {
 public:
  Nanos now() override { return monotonic_now(); }
  void sleep_until(Nanos time) override {
    // By default the kernel may wake a thread 50 us late to save power; 0 is that default.
    thread_local const int slack_set = ::prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
    static_cast<void>(slack_set);
    const timespec until{.tv_sec = static_cast<time_t>(time / kSecond),
                         .tv_nsec = static_cast<long>(time % kSecond)};
    while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
    }
  }
};

}  // namespace

std::shared_ptr<ComputeClock> make_sleeping_clock() {
  return std::make_shared<SleepingClock>();
}

void ModelledTime::take(double seconds) {
  due_ += static_cast<Nanos>(std::llround(seconds * static_cast<double>(kSecond)));
  if (clock_->now() < due_) clock_->sleep_until(due_);
}

void ModelledTime::end(Nanos end) {
  const Nanos over = std::max<Nanos>(end - due_, 0);
  late_ = std::min(over, kLateMax);
  lost_ += over - late_;
  if (lost_ == lost_logged_ || end < log_due_) return;
  spdlog::warn("{}: is slower than its model: {} ms behind since it was last said", name_,
               static_cast<double>(lost_ - lost_logged_) / static_cast<double>(kMillisecond));
  lost_logged_ = lost_;
  log_due_ = end + kLogInterval;
}

}  // namespace volley::engine
