#pragma once

// `compute: modelled`: engines that take the time that a model of some machine says, in place of
// computing. Everything else is real: scheduler, gather, control plane, and messages with all their
// bytes. So a cluster of any size and speed runs on one machine, and meets what was predicted of
// it.

#include <cstdint>
#include <memory>

#include "volley/base/ids.h"
#include "volley/perf/stage_times.h"

namespace volley::engine {

/// What a modelled engine computes by. Tests put their own in its place.
class ComputeClock {
 public:
  virtual ~ComputeClock() = default;
  virtual Nanos now() = 0;
  /// Blocks the engine thread until `time`, or a little longer; messages do not wake it, as they do
  /// not interrupt a kernel.
  virtual void sleep_until(Nanos time) = 0;
};

/// CLOCK_MONOTONIC. Sleeps and never spins: nodes that share a core would take it from each other,
/// and a node that computes on its own machine takes nothing from the others. How late the kernel
/// wakes a thread is made up for by the next wait (docs/design.md).
std::shared_ptr<ComputeClock> make_sleeping_clock();

struct ModelledCompute {
  std::shared_ptr<const perf::StageTimes> times;
  /// Rows choose their experts by a hash of the seed and of their place in the sequence, so the
  /// same request takes the same way through every topology.
  uint64_t seed = 0;
  /// Zipf's exponent: the expert of rank r is drawn in proportion to r^-skew, ranks shuffled in
  /// every layer. 0: all alike.
  double expert_skew = 0;
  std::shared_ptr<ComputeClock> clock = make_sleeping_clock();
};

}  // namespace volley::engine
