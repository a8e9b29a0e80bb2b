#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "volley/base/ids.h"

namespace volley::frontend {

/// A request in the frontend, never reused in a process.
using RequestId = Id<struct RequestTag, uint64_t>;

/// Who may run and who waits: at most `in_flight_max` requests run, at most `queue_max` wait, first
/// come, first served. Pure. Thread: none; the caller serialises.
class Admission {
 public:
  Admission(uint32_t in_flight_max, uint32_t queue_max);

  enum class Decision : uint8_t { kRun, kWait, kFull };
  /// kRun counts as in flight until leave(); kWait until it is handed out by next(), or withdrawn.
  Decision arrive(RequestId id);
  /// Takes a waiting request out. False when it does not wait.
  bool withdraw(RequestId id);
  /// A request in flight has ended after `duration`.
  void leave(Nanos duration);
  /// The next waiting request that may run; it then counts as in flight.
  std::optional<RequestId> next();

  uint32_t in_flight() const { return in_flight_; }
  uint32_t waiting() const { return static_cast<uint32_t>(queue_.size()); }
  /// When a request that finds the queue full may try again: the time in which, at the mean
  /// duration of late, the queue moves by a tenth. In [100 ms, 30 s].
  Nanos retry_after() const;

 private:
  const uint32_t in_flight_max_;
  const uint32_t queue_max_;
  uint32_t in_flight_ = 0;
  std::deque<RequestId> queue_;
  double mean_duration_ = 0;
};

}  // namespace volley::frontend
