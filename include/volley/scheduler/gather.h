#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "volley/base/ids.h"

namespace volley::scheduler {

struct GatherOptions {
  uint32_t layers = 0;
  uint32_t rows_max = 4096;  ///< Entries (row, expert) merged into one grouped FFN at most.
  Nanos window_max = 2 * kMillisecond;  ///< Upper bound of the wait W.
  /// A dispatch that has waited longer than this many measured step times goes first.
  double age_steps_max = 1.0;
};

/// One dispatch that waits to be computed.
struct PendingDispatch {
  LinkId link;
  uint32_t slot = 0;
  uint32_t layer = 0;
  uint32_t entry_count = 0;
  Nanos arrived = 0;
};

/// What the expert node does next.
struct GatherDecision {
  enum class Kind : uint8_t { kRun, kWait, kIdle };
  Kind kind = Kind::kIdle;
  uint32_t layer = 0;
  std::span<const PendingDispatch>
      dispatches;        ///< kRun: all of one layer. Valid until the next decide().
  Nanos wait_until = 0;  ///< kWait: ask again then, or when something arrives.
};

/// Which dispatches run together (design: one layer's rows from all attention nodes in one grouped
/// FFN).
///
/// Each stream (link, micro-batch slot) is predicted from its own past: after an answer for layer l
/// it comes back with layer l + 1 (modulo the layers) after about its usual turnaround. The layer
/// of the streams that lag is served first, so that nodes which start at random phases come into
/// step. It runs as soon as every link that is predicted to arrive within the window W is here; W
/// is 0 when nothing is predicted or the node is lightly loaded, else three times the compute time
/// that one merge saves, at most window_max. At layer 0, W grows to what a whole step of merges
/// saves (at most window_max), to draw links of equal pace into step. Streams of one link are never
/// waited for on behalf of each other: that would undo the ping-pong. A dispatch past its age limit
/// goes first and waits for nobody (GATHER-2). Dispatches without entries are handed out at once,
/// apart from the others.
///
/// GATHER-1: every pending dispatch is run exactly once or removed with its link.
///
/// Pure: events and times in, decisions out; deterministic. State: one record per slot of each open
/// link. A decision takes 0.13 us with 2 links, 0.24 us with 4 and 0.47 us with 8 (m = 4, 32
/// layers, one core of an AMD EPYC virtual machine).
class GatherPolicy {
 public:
  explicit GatherPolicy(GatherOptions options);
  ~GatherPolicy();

  /// Slots [0, micro_batches) are predicted; the takeover slots behind them never are.
  void on_link_opened(LinkId link, uint32_t micro_batches);
  /// Drops what is pending and predicted from the link.
  void on_link_closed(LinkId link);
  /// A slot has at most one dispatch that is not answered.
  void on_dispatch(const PendingDispatch& dispatch);
  /// Must not be called between a kRun decision and its on_answered().
  GatherDecision decide(Nanos now);
  /// The run that decide() returned was computed and answered; `elapsed` is its compute time. Links
  /// may have closed meanwhile.
  void on_answered(Nanos now, Nanos elapsed);

  struct Stats {
    uint64_t runs = 0;
    uint64_t dispatches = 0;      ///< With entries.
    uint64_t mergeable_runs = 0;  ///< Runs while more than one link was open and active.
    uint64_t merged_runs = 0;     ///< Of these, runs with dispatches of every active link.
    Nanos window = 0;             ///< The W in use.
    Nanos waited = 0;             ///< Total time spent waiting for predicted arrivals.
  };
  Stats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::scheduler
