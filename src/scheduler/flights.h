#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "routes.h"
#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/protocol/wire.h"
#include "volley/scheduler/attention_core.h"

namespace volley::scheduler {

/// An element of the router's choice: row of the micro-batch, expert.
struct Pair {
  uint32_t row = 0;
  uint32_t expert = 0;
  auto operator<=>(const Pair&) const = default;
};

/// The rows [begin, end) of a micro-batch, which are one fragment of it, with the router's choice.
struct Fragment {
  uint32_t begin = 0;
  uint32_t end = 0;
  uint32_t top_k = 0;
  std::span<const uint32_t> expert;    ///< [rows of the micro-batch, top_k]
  const std::vector<bool>& row_ended;  ///< Rows of the micro-batch that are not dispatched.
};

/// Replaces `pairs` by those of the fragment's rows that are dispatched.
void collect_pairs(const Fragment& fragment, std::vector<Pair>& pairs);

/// What one link has to answer for one fragment of one micro-batch in one slot.
struct Flight {
  ExpertLink* link = nullptr;
  uint32_t slot = 0;
  bool outstanding = false;
  protocol::MessageHeader header;
  std::vector<protocol::Entry> entries;  ///< As sent, sorted by (expert, row).
  std::vector<uint32_t> rows;            ///< Per message row the row of the micro-batch, ascending.
  std::vector<Pair> pairs;               ///< What was sent, sorted by (row, expert).
  std::vector<Pair> queued;              ///< To go with the next message in this slot.

  bool done() const { return !outstanding && queued.empty(); }
  /// Takes the slot for a message with what is queued. What the slot carried before, if anything,
  /// goes again with it: its answer would be overwritten by the new one before it is combined.
  /// `common` is the header, complete but for sequence, slot and the counts.
  void launch(const protocol::MessageHeader& common);
  /// Whether the header is one that answers the message, over a link of `geometry`.
  /// Errors: kDataLoss naming node, field and values.
  Status check_answer(const protocol::MessageHeader& answer,
                      const protocol::LinkGeometry& geometry) const;
};

/// The flights of a micro-batch's current fragment. Owns them, and keeps the memory of those that
/// are removed for later ones, so that a step allocates nothing.
///
/// Invariants: at most one flight per link and slot; every dispatched pair of the fragment is in
/// exactly one flight, except between take() or take_lost() and assign(). Losing a link, or being
/// refused, means moving its pairs to other flights; where the answers lie is worked out when all
/// of them are in. References to flights are valid until the next add, assign or removal.
class Flights {
 public:
  /// Of fragments with at most so many rows, and so many pairs in all. One flight may have to take
  /// them all, so each reserves room for them when it is made.
  Flights(uint32_t rows_max, size_t pairs_max) : rows_max_(rows_max), pairs_max_(pairs_max) {}

  std::span<Flight> live() { return {flights_.data(), count_}; }
  std::span<const Flight> live() const { return {flights_.data(), count_}; }
  bool empty() const { return count_ == 0; }
  /// Flights whose answer has still to come.
  uint32_t missing_count() const;
  /// nullptr: there is none.
  Flight* find(LinkId link, uint32_t slot);

  /// A flight with nothing in it to every live node of the layer.
  void add_for_layer(const Routes& routes, uint32_t layer, uint32_t slot);
  /// Queues each pair for a live holder, in its flight of the slot, which is added where it is
  /// missing. Errors: kUnavailable naming the layer and the first expert without a live holder;
  /// then nothing is changed.
  Status assign(std::span<const Pair> pairs, Routes& routes, uint32_t layer, uint32_t slot);

  void remove(const Flight& flight);
  /// Removes the flight and appends all of its pairs.
  void take(const Flight& flight, std::vector<Pair>& pairs);
  /// Does so with all flights of the link; how many there were.
  uint32_t take_lost(const ExpertLink& link, std::vector<Pair>& pairs);
  /// Leaves only what is outstanding, with nothing queued.
  void keep_outstanding();
  void clear() { count_ = 0; }

  /// Says where the answers to the fragment lie, all of which must be in: replaces `answers` by
  /// [end - begin, top_k]. With kPreReduce the one row that a flight has for a row takes the place
  /// of the lowest of its experts.
  void note_answers(const Fragment& fragment, protocol::Combine combine,
                    std::vector<AnswerRef>& answers) const;

 private:
  Flight& add(ExpertLink& link, uint32_t slot);

  const uint32_t rows_max_;
  const size_t pairs_max_;
  std::vector<Flight> flights_;  ///< Live ones are [0, count_).
  uint32_t count_ = 0;
};

}  // namespace volley::scheduler
