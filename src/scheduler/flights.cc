// The bookkeeping of one fragment: which pair is in which flight, and in the end where its answer
// lies. Nothing is sent here; the core posts what launch() makes.

#include "flights.h"

#include <algorithm>
#include <utility>

#include "volley/base/check.h"

namespace volley::scheduler {

using protocol::Entry;
using protocol::MessageHeader;
using protocol::MessageKind;

void collect_pairs(const Fragment& fragment, std::vector<Pair>& pairs) {
  pairs.clear();
  for (uint32_t row = fragment.begin; row < fragment.end; ++row) {
    if (fragment.row_ended[row]) continue;
    for (const uint32_t expert :
         fragment.expert.subspan(size_t{row} * fragment.top_k, fragment.top_k)) {
      pairs.push_back({.row = row, .expert = expert});
    }
  }
}

// --- One flight ---

void Flight::launch(const MessageHeader& common) {
  VOLLEY_CHECK(!outstanding);
  pairs.insert(pairs.end(), queued.begin(), queued.end());
  queued.clear();
  std::sort(pairs.begin(), pairs.end());
  rows.clear();
  entries.clear();
  for (const Pair& pair : pairs) {
    if (rows.empty() || rows.back() != pair.row) rows.push_back(pair.row);
    entries.push_back({.row = static_cast<uint32_t>(rows.size() - 1), .expert = pair.expert});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.expert, a.row) < std::pair(b.expert, b.row);
  });
  header = common;
  header.sequence = link->slots.post(slot);
  header.slot = static_cast<uint16_t>(slot);
  header.row_count = static_cast<uint32_t>(rows.size());
  header.entry_count = static_cast<uint32_t>(entries.size());
  outstanding = true;
}

Status Flight::check_answer(const MessageHeader& answer,
                            const protocol::LinkGeometry& geometry) const {
  const auto mismatch = [&](const char* field, uint64_t value, uint64_t expected) {
    return data_loss("expert node {}: answer in slot {} has {} {}, the dispatch says {}",
                     link->node, slot, field, value, expected);
  };
  if (answer.layer != header.layer) return mismatch("layer", answer.layer, header.layer);
  if (answer.micro_batch != header.micro_batch) {
    return mismatch("micro-batch", answer.micro_batch, header.micro_batch);
  }
  if (answer.fragment != header.fragment) {
    return mismatch("fragment", answer.fragment, header.fragment);
  }
  const uint32_t row_count = geometry.answer_rows(header.row_count, header.entry_count);
  if (answer.kind == MessageKind::kAnswer && answer.row_count != row_count) {
    return mismatch("row count", answer.row_count, row_count);
  }
  return ok_status();
}

// --- All flights of a fragment ---

uint32_t Flights::missing_count() const {
  const auto flights = live();
  return static_cast<uint32_t>(std::count_if(flights.begin(), flights.end(),
                                             [](const Flight& flight) { return !flight.done(); }));
}

Flight* Flights::find(LinkId link, uint32_t slot) {
  for (Flight& flight : live()) {
    if (flight.link->id == link && flight.slot == slot) return &flight;
  }
  return nullptr;
}

Flight& Flights::add(ExpertLink& link, uint32_t slot) {
  if (count_ == flights_.size()) {
    Flight& made = flights_.emplace_back();
    made.entries.reserve(pairs_max_);
    made.rows.reserve(rows_max_);
    made.pairs.reserve(pairs_max_);
    made.queued.reserve(pairs_max_);
  }
  Flight& flight = flights_[count_++];
  flight.link = &link;
  flight.slot = slot;
  flight.outstanding = false;
  flight.entries.clear();
  flight.rows.clear();
  flight.pairs.clear();
  flight.queued.clear();
  return flight;
}

void Flights::add_for_layer(const Routes& routes, uint32_t layer, uint32_t slot) {
  for (const uint32_t node : routes.nodes_of_layer(layer)) {
    if (ExpertLink* link = routes.link_of(node); link != nullptr) add(*link, slot);
  }
}

Status Flights::assign(std::span<const Pair> pairs, Routes& routes, uint32_t layer, uint32_t slot) {
  for (const Pair& pair : pairs) {
    if (routes.has_live_holder(layer, pair.expert)) continue;
    return unavailable("{} has no live holder", place_name(layer, pair.expert));
  }
  for (const Pair& pair : pairs) {
    ExpertLink& link = routes.choose_holder(layer, pair.expert);
    Flight* flight = find(link.id, slot);
    if (flight == nullptr) flight = &add(link, slot);
    flight->queued.push_back(pair);
  }
  return ok_status();
}

void Flights::remove(const Flight& flight) {
  const auto place = static_cast<size_t>(&flight - flights_.data());
  VOLLEY_CHECK(place < count_);
  std::swap(flights_[place], flights_[--count_]);
}

void Flights::take(const Flight& flight, std::vector<Pair>& pairs) {
  pairs.insert(pairs.end(), flight.pairs.begin(), flight.pairs.end());
  pairs.insert(pairs.end(), flight.queued.begin(), flight.queued.end());
  remove(flight);
}

uint32_t Flights::take_lost(const ExpertLink& link, std::vector<Pair>& pairs) {
  const uint32_t count_before = count_;
  for (uint32_t i = count_; i > 0; --i) {
    if (flights_[i - 1].link == &link) take(flights_[i - 1], pairs);
  }
  return count_before - count_;
}

void Flights::keep_outstanding() {
  for (uint32_t i = count_; i > 0; --i) {
    Flight& flight = flights_[i - 1];
    flight.queued.clear();
    if (!flight.outstanding) remove(flight);
  }
}

void Flights::note_answers(const Fragment& fragment, protocol::Combine combine,
                           std::vector<AnswerRef>& answers) const {
  const uint32_t top_k = fragment.top_k;
  const size_t ref_count = size_t{fragment.end - fragment.begin} * top_k;
  answers.assign(ref_count, {.link = {}, .slot = 0, .index = AnswerRef::kNone});
  const auto note = [&](const Flight& flight, const Pair& pair, uint32_t index) {
    const auto chosen = fragment.expert.subspan(size_t{pair.row} * top_k, top_k);
    const auto j =
        static_cast<size_t>(std::find(chosen.begin(), chosen.end(), pair.expert) - chosen.begin());
    VOLLEY_CHECK(j < top_k);
    AnswerRef& ref = answers[size_t{pair.row - fragment.begin} * top_k + j];
    VOLLEY_CHECK(ref.index == AnswerRef::kNone);
    ref = {.link = flight.link->id, .slot = flight.slot, .index = index};
  };
  size_t entry_count = 0;
  for (const Flight& flight : live()) {
    if (combine == protocol::Combine::kPreReduce) {
      // Of a row's pairs the first has the lowest expert; rows are in the message's order.
      uint32_t index = 0;
      for (size_t i = 0; i < flight.pairs.size(); ++i) {
        if (i > 0 && flight.pairs[i - 1].row == flight.pairs[i].row) continue;
        note(flight, flight.pairs[i], index++);
      }
    } else {
      for (uint32_t i = 0; i < flight.entries.size(); ++i) {
        const Entry& entry = flight.entries[i];
        note(flight, {.row = flight.rows[entry.row], .expert = entry.expert}, i);
      }
    }
    entry_count += flight.entries.size();
  }
  size_t ended_rows = 0;
  for (uint32_t row = fragment.begin; row < fragment.end; ++row) {
    if (fragment.row_ended[row]) ++ended_rows;
  }
  VOLLEY_CHECK(entry_count + ended_rows * top_k == ref_count);
}

}  // namespace volley::scheduler
