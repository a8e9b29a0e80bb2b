#pragma once

// What the nodes of one simulated cluster share: time, wires, and where they write what happened.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "event_queue.h"
#include "router.h"
#include "volley/perf/stage_times.h"
#include "volley/protocol/link.h"
#include "volley/protocol/wire.h"
#include "volley/simulation/options.h"
#include "volley/simulation/report.h"

namespace volley::simulation {

inline Nanos to_nanos(double seconds) {
  return static_cast<Nanos>(seconds * 1e9 + 0.5);
}
inline double to_seconds(Nanos time) {
  return static_cast<double>(time) * 1e-9;
}

/// Counts calls and, when asked to, their wall time.
class CostMeter {
 public:
  CostMeter(CallCost& cost, bool measured) : cost_(cost), measured_(measured) {
    cost_.calls += 1;
    if (measured_) start_ = std::chrono::steady_clock::now();
  }
  ~CostMeter() {
    if (!measured_) return;
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    cost_.seconds += passed.count();
  }
  CostMeter(const CostMeter&) = delete;
  CostMeter& operator=(const CostMeter&) = delete;

 private:
  CallCost& cost_;
  const bool measured_;
  std::chrono::steady_clock::time_point start_;
};

/// One slot of a link: the message that is in it, and when what happened to it.
struct SlotState {
  protocol::MessageHeader header;  ///< Of the dispatch; from its answer on, of the answer.
  Nanos duration = 0;              ///< At the sender's NIC, of the message under way.
  Nanos receiving = 0;             ///< At the receiver's.
  Nanos posted = 0;                ///< The dispatch.
  Nanos arrived = 0;               ///< It was in the expert node's memory.
  Nanos run_began = 0;
  Nanos run_ended = 0;
  bool late = false;  ///< The expert node was computing when it came.
};

/// A link, which both of its nodes know by the same number.
struct LinkState {
  LinkState(uint32_t from, uint32_t to, uint32_t slot_count, uint32_t held)
      : attention(from),
        expert(to),
        slots(slot_count),
        rows(size_t{slot_count} * held),
        answers(slot_count) {}

  uint32_t attention, expert;
  bool open_at_attention = false, open_at_expert = false;
  std::vector<SlotState> slots;
  std::vector<uint32_t> rows;  ///< [slot_count][held]: rows of the dispatch per expert held.
  protocol::AnswerLink answers;

  std::span<uint32_t> rows_of(uint32_t slot) {
    const size_t held = rows.size() / slots.size();
    return std::span(rows).subspan(slot * held, held);
  }
};

/// A network card: messages go out one after the other, and come in one after the other.
struct Nic {
  Nanos out_free = 0;
  Nanos in_free = 0;
};

/// A message in a node's memory that its engine thread has not seen.
struct Arrival {
  Nanos at = 0;
  uint32_t link = 0;
  uint32_t slot = 0;
};

/// First in, first out; times ascend. Allocates only while it grows.
class Inbox {
 public:
  void push(const Arrival& arrival) { items_.push_back(arrival); }
  bool empty() const { return head_ == items_.size(); }
  const Arrival& front() const { return items_[head_]; }
  bool ready(Nanos now) const { return !empty() && front().at <= now; }
  Arrival pop() {
    const Arrival first = items_[head_++];
    if (head_ == items_.size()) {
      items_.clear();
      head_ = 0;
    }
    return first;
  }

 private:
  std::vector<Arrival> items_;
  size_t head_ = 0;
};

/// A request on its way through an attention node.
struct Request {
  Nanos arrived = 0;
  Nanos first_token = 0;
  Nanos last_token = 0;
  uint32_t input = 0;
  uint32_t output = 0;
  uint32_t tokens = 0;
  uint32_t client = kNoClient;
  uint32_t node = 0;
  bool accepted = false;
  uint32_t hidden_context = 0;  ///< Tokens of the prompt that the scheduler does not know of.

  static constexpr uint32_t kNoClient = 0xffffffff;
};

struct World {
  World(const SimulationOptions& given, const perf::StageTimes& stage_times, Report& into)
      : options(given),
        times(stage_times),
        report(into),
        costs(into.costs),
        attention_byte(1e9 / given.network.bytes_per_s),
        expert_byte(given.expert_bytes_per_s > 0 ? 1e9 / given.expert_bytes_per_s : attention_byte),
        latency(to_nanos(given.network.latency_s)),
        count_from(to_nanos(given.warm_up_s)),
        count_to(to_nanos(given.duration_s)) {}

  const SimulationOptions& options;
  const perf::StageTimes& times;
  Report& report;
  ProductionCosts& costs;
  const double attention_byte, expert_byte;  ///< Nanoseconds of a byte at a NIC.
  const Nanos latency, count_from, count_to;
  protocol::LinkGeometry geometry;
  Nanos now = 0;
  EventQueue queue;
  std::unique_ptr<Router> router;
  std::vector<LinkState> links;
  std::vector<Request> requests;
  std::vector<std::vector<uint32_t>>
      places;                              ///< Per expert node and expert: where it is in `held`.
  std::vector<uint64_t> expert_rows;       ///< Per expert, all layers.
  std::vector<uint32_t> nodes_with_ended;  ///< Attention nodes whose `ended` is not empty.
  double batch_rows = 0, active_micro_batches = 0;  ///< Sums over the counted steps.
  uint64_t steps = 0;
  bool keep_trace = false;

  const std::vector<uint32_t>& place_of(uint32_t expert_node) const { return places[expert_node]; }
  bool measured() const { return options.measure_costs; }
  bool counts() const { return now >= count_from && now <= count_to; }
  /// How much of [begin, end] is counted.
  double counted(Nanos begin, Nanos end) const {
    const Nanos from = begin > count_from ? begin : count_from;
    const Nanos to = end < count_to ? end : count_to;
    return to > from ? to_seconds(to - from) : 0;
  }
  /// How long `bytes` take at a NIC of the pool.
  Nanos at_nic(uint64_t bytes, bool expert) const {
    return static_cast<Nanos>(static_cast<double>(bytes) * (expert ? expert_byte : attention_byte) +
                              0.5);
  }
  /// The sender's NIC takes the message now or when it is free.
  void send(Nic& nic, SlotState& slot, uint64_t bytes, bool from_expert, uint32_t link,
            uint32_t index) {
    slot.duration = at_nic(bytes, from_expert);
    slot.receiving = at_nic(bytes, !from_expert);
    const Nanos start = nic.out_free > now ? nic.out_free : now;
    nic.out_free = start + slot.duration;
    queue.push(start + latency,
               from_expert ? Event::Kind::kAnswerArrives : Event::Kind::kDispatchArrives, link,
               index);
  }
  /// The message's first byte is at the NIC: when its last one will be in memory. Taking in
  /// overlaps with sending, so that a message alone needs the latency and its time at the slower
  /// NIC.
  Nanos receive(Nic& nic, const SlotState& slot) const {
    const Nanos start = nic.in_free > now ? nic.in_free : now;
    nic.in_free = std::max(start + slot.receiving, now + slot.duration);
    return nic.in_free;
  }
  void trace(const TraceSpan& span) {
    if (!keep_trace) return;
    Trace& kept = report.trace;
    if (span.node >= options.trace.nodes_max) return;
    if (span.end <= kept.begin || span.begin >= kept.end) return;
    if (kept.spans.size() >= options.trace.spans_max) {
      kept.cut = true;
      return;
    }
    kept.spans.push_back(span);
  }
};

/// Length of the part that two stretches of time share.
inline Nanos overlap(Nanos begin, Nanos end, Nanos other_begin, Nanos other_end) {
  const Nanos from = begin > other_begin ? begin : other_begin;
  const Nanos to = end < other_end ? end : other_end;
  return to > from ? to - from : 0;
}

}  // namespace volley::simulation
