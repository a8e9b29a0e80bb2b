#pragma once

// From the spans of an attention and an expert node to T_a, T_e and T_c, and from these to what the
// ping-pong pipeline should reach (docs/benchmarks-end-to-end.md, "The model").

#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/engine/profile.h"

namespace volley::benchmarks {

using Trace = std::vector<engine::SpanRecord>;

/// One run: m micro-batches of `rows` sequences each, all of them decoding between `begin` and
/// `end`.
struct RunTrace {
  uint32_t micro_batches = 1;
  uint32_t rows = 1;
  uint32_t layers = 1;
  Nanos begin = 0;
  Nanos end = 0;
  Trace attention;
  Trace expert;
};

/// Means per micro-batch and layer, but for the head: per micro-batch and step. In nanoseconds.
struct PhaseTimes {
  double attention = 0;  ///< T_a: combine to post, with the bookkeeping between.
  double expert = 0;     ///< T_e: the same on the expert node.
  double transfer = 0;   ///< T_c, one way: from the end of a post to the receiver's first work on
                         ///< it, where the receiver was waiting for it.
  double head = 0;       ///< T_h: final norm, head and sampling.
};

/// Steady state over `rounds` steps of every micro-batch.
struct Window {
  Nanos begin = 0;
  Nanos end = 0;
  double steps_per_s = 0;  ///< Micro-batch steps.
  PhaseTimes times{};
  uint64_t transfers = 0;     ///< Messages that T_c is the mean of; 0: T_c is not known.
  double expert_runs = 0;     ///< Grouped FFNs per dispatch: below 1 where dispatches were merged.
  double attention_busy = 0;  ///< Shares of the window.
  double expert_busy = 0;
};

/// All windows of `rounds` rounds in the run, one after the other, but for those in which a step
/// has another number of rows than `rows`. Errors: kInternal (there is none).
Result<std::vector<Window>> find_windows(const RunTrace& run, uint32_t rounds);

/// The period in which all m micro-batches advance by one step: none of attention node, expert node
/// and the path of one micro-batch through all layers can take less. In nanoseconds.
double predicted_period(const PhaseTimes& times, uint32_t micro_batches, uint32_t layers);
/// Micro-batch steps per second.
double predicted_steps_per_s(const PhaseTimes& times, uint32_t micro_batches, uint32_t layers);

}  // namespace volley::benchmarks
