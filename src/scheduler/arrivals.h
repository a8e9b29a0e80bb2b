#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "volley/base/ids.h"
#include "volley/scheduler/gather.h"

namespace volley::scheduler {

/// A running mean and mean absolute deviation.
struct Estimate {
  Nanos mean = 0;
  Nanos deviation = 0;

  void add(Nanos sample);
};

/// Splits run times into a part that each run costs and a part that each entry costs, by least
/// squares over about the last 64 runs.
class RunCost {
 public:
  void add(uint64_t entries, Nanos elapsed);
  /// What merging two runs into one saves.
  Nanos per_run() const;

 private:
  double n_ = 0, x_ = 0, y_ = 0, xx_ = 0, xy_ = 0;
  double slope_ = 0;
};

/// The dispatches of one slot of one link.
struct DispatchStream {
  enum class State : uint8_t { kUnknown, kPending, kRunning, kAway };

  State state = State::kUnknown;
  bool predicted = false;    ///< Takeover slots are not.
  PendingDispatch dispatch;  ///< The last one.
  Nanos answered = 0;
  Estimate turnaround;  ///< From the answer of a layer to the dispatch of the next one.
  /// The same from the last layer to layer 0: head, sampling, planning.
  Estimate turnaround_step;

  bool pending() const { return state == State::kPending; }
  bool pending_at(uint32_t layer) const { return pending() && dispatch.layer == layer; }
};

struct DispatchSource {
  LinkId id;
  Nanos last_arrival = -1;
  Estimate layer_time;  ///< Of one stream, from dispatch to dispatch: the pace of the node.
  std::vector<DispatchStream> streams;  ///< By slot.
};

/// What GatherPolicy has seen of each stream, and what it may expect from that: when streams come
/// with their next layer, and how long it pays to wait. Owns the records of the open links; decides
/// nothing.
///
/// Invariant: a stream goes kUnknown -> kPending -> kRunning -> kAway -> kPending, and so on.
class Arrivals {
 public:
  explicit Arrivals(const GatherOptions& options) : options_(options) {}

  void open(LinkId link, uint32_t micro_batches);
  void close(LinkId link);
  /// In order of opening.
  std::span<const DispatchSource> links() const { return links_; }

  void on_dispatch(const PendingDispatch& dispatch);
  void on_run(std::span<const PendingDispatch> run);
  /// Links that closed meanwhile are left out.
  void on_answered(std::span<const PendingDispatch> run, Nanos now);
  /// The compute time of a run that had entries.
  void add_cost(uint64_t entries, Nanos elapsed) { cost_.add(entries, elapsed); }

  /// 0: not measured yet.
  Nanos step_time() const { return layer_time_.mean * options_.layers; }
  uint32_t next_layer(const DispatchStream& stream) const {
    return stream.dispatch.layer + 1 == options_.layers ? 0 : stream.dispatch.layer + 1;
  }
  /// The stream is away, and not for so long that its node must be idle.
  bool returns_soon(const DispatchStream& stream, Nanos now) const {
    return expected_at(stream) >= 0 && now - stream.answered < 4 * turnaround(stream).mean;
  }
  /// The stream is expected with the layer until `limit`, and not overdue.
  bool expected_within(const DispatchStream& stream, uint32_t layer, Nanos now, Nanos limit) const;
  Nanos saving() const { return cost_.per_run(); }
  /// W; 0: waiting buys nothing.
  Nanos window() const;
  /// The latest time at which the first stream of the link should be at the layer, where dispatches
  /// wait since `since`, if that is worth waiting for; else 0.
  Nanos arrival_of(const DispatchSource& link, uint32_t layer, Nanos since, Nanos now) const;

 private:
  DispatchSource* find(LinkId id);
  void learn(DispatchSource& link, DispatchStream& stream, const PendingDispatch& dispatch);
  void learn_load(const PendingDispatch& dispatch);
  const Estimate& turnaround(const DispatchStream& stream) const {
    return next_layer(stream) == 0 ? stream.turnaround_step : stream.turnaround;
  }
  /// When the stream is expected with its next layer; -1: not at all.
  Nanos expected_at(const DispatchStream& stream) const {
    const bool away = stream.state == DispatchStream::State::kAway;
    if (!stream.predicted || !away || turnaround(stream).mean == 0) return -1;
    return stream.answered + turnaround(stream).mean;
  }
  Nanos margin(const DispatchStream& stream) const;
  bool keeps_pace(const DispatchSource& link, uint32_t layer) const;

  const GatherOptions options_;
  std::vector<DispatchSource> links_;
  RunCost cost_;
  Estimate layer_time_;
  double arrival_gap_ = 0;  ///< Mean time between dispatches with entries.
  Nanos last_arrival_ = -1;
};

}  // namespace volley::scheduler
