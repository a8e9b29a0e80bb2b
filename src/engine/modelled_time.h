#pragma once

#include <memory>
#include <string>

#include "volley/engine/modelled.h"

namespace volley::engine {

/// Lets modelled time pass on an engine's thread.
///
/// A piece of work lies between begin() and end(), and takes the time that take() asks for in
/// between, counted from begin(): what the engine really does in it (books, packing, posting) is
/// part of the modelled time, not added to it. What is over at end(), because the kernel woke the
/// thread late or because the real work came after the last take(), shortens the next work. So each
/// single work is off by how the kernel wakes threads, and their sum is not.
class ModelledTime {
 public:
  /// More than this is not made up for: a node that stood still for a while must not run faster
  /// than its machine for as long. Logged, as is work that takes longer than it is to.
  static constexpr Nanos kLateMax = 10 * kMillisecond;

  ModelledTime(std::string name, std::shared_ptr<ComputeClock> clock)
      : name_(std::move(name)), clock_(std::move(clock)) {}

  void begin(Nanos start) { due_ = start - late_; }
  /// The next part of the work takes so long; blocks until it is over.
  void take(double seconds);
  void end(Nanos end);

  /// What could not be made up for, since the start.
  Nanos lost() const { return lost_; }

 private:
  const std::string name_;
  const std::shared_ptr<ComputeClock> clock_;
  Nanos due_ = 0;   // When what was asked for so far should be over.
  Nanos late_ = 0;  // By which the last work was over too late.
  Nanos lost_ = 0, lost_logged_ = 0, log_due_ = 0;
};

}  // namespace volley::engine
