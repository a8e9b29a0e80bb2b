#pragma once

#include <functional>
#include <thread>

#include "volley/transport/fabric.h"

namespace volley::transport {

/// Calls `pulse` every `interval` from a thread of its own, from construction to destruction, so
/// that peers hear of this process while its engine thread computes. What `pulse` refers to must
/// outlive it.
class PulseThread {
 public:
  PulseThread(std::function<void()> pulse, Nanos interval);
  /// Pulses the fabric, whatever its engine thread does.
  PulseThread(Fabric& fabric, Nanos interval)
      : PulseThread([&fabric] { fabric.pulse(); }, interval) {}

 private:
  std::jthread thread_;  // Asked to stop and joined on destruction.
};

}  // namespace volley::transport
