#include "volley/transport/pulse_thread.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "volley/base/check.h"

namespace volley::transport {

PulseThread::PulseThread(std::function<void()> pulse, Nanos interval) {
  VOLLEY_CHECK(interval > 0);
  thread_ = std::jthread([pulse = std::move(pulse), interval](std::stop_token stop) {
    std::mutex mutex;
    std::condition_variable_any stopped;
    std::unique_lock lock(mutex);
    while (!stop.stop_requested()) {
      pulse();
      stopped.wait_for(lock, stop, std::chrono::nanoseconds(interval), [] { return false; });
    }
  });
}

}  // namespace volley::transport
