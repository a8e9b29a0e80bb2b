#pragma once

#include <atomic>

#include "volley/base/clock.h"

namespace volley::engine {

/// When an engine thread last began a turn of its loop. The thread that pulses reads it, so that a
/// node whose engine hangs falls silent on its links although its process lives.
class Progress {
 public:
  void turn(Nanos now) { last_turn_.store(now, std::memory_order_relaxed); }
  bool stalled(Nanos now) const {
    return now - last_turn_.load(std::memory_order_relaxed) > kStallTimeout;
  }

 private:
  // Longer than any one computation: the longest is a prefill step of a large model on few cores.
  static constexpr Nanos kStallTimeout = 30 * kSecond;
  std::atomic<Nanos> last_turn_{monotonic_now()};
};

}  // namespace volley::engine
