#pragma once

#include <thread>

#include "volley/transport/fabric.h"

namespace volley::transport {

/// Calls fabric.pulse() every `interval` from a thread of its own, from construction to
/// destruction, so that peers hear of this process while its engine thread computes. The fabric
/// must outlive it.
class PulseThread {
 public:
  PulseThread(Fabric& fabric, Nanos interval);

 private:
  std::jthread thread_;  // Asked to stop and joined on destruction.
};

}  // namespace volley::transport
