// The attention node as a pure machine. What goes where is kept in flights: a flight is what one
// link has to answer for one fragment of one micro-batch in one slot. Every (row, expert) of the
// fragment is in exactly one flight at any time, so losing a link, or being refused, means moving
// its pairs to other flights; where the answers lie is worked out when all of them are in.

#include "volley/scheduler/attention_core.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <utility>

#include "volley/base/check.h"
#include "volley/protocol/link.h"

namespace volley::scheduler {

using protocol::Entry;
using protocol::ExpertMap;
using protocol::MapVersion;
using protocol::MessageHeader;
using protocol::MessageKind;
using protocol::Refusal;

namespace {

struct Link {
  LinkId id;
  std::string node;
  Incarnation incarnation;
  protocol::DispatchLink slots;
  std::optional<Nanos> heard;
};

/// A map that steps use, with what is worked out from it and from the links.
struct Routes {
  std::shared_ptr<const ExpertMap> map;               ///< Shared with the shell, which made it.
  std::vector<Link*> link_of_node;                    ///< nullptr: no live link.
  std::vector<std::vector<uint32_t>> nodes_of_layer;  ///< Those that hold any expert of the layer.
};

/// An element of the router's choice: row of the micro-batch, expert.
struct Pair {
  uint32_t row = 0;
  uint32_t expert = 0;
  auto operator<=>(const Pair&) const = default;
};

struct Flight {
  Link* link = nullptr;
  uint32_t slot = 0;
  bool outstanding = false;
  MessageHeader header;
  std::vector<Entry> entries;  ///< As sent, sorted by (expert, row).
  std::vector<uint32_t> rows;  ///< Per message row the row of the micro-batch, ascending.
  std::vector<Pair> pairs;     ///< What was sent.
  std::vector<Pair> queued;    ///< To go with the next message in this slot.

  bool done() const { return !outstanding && queued.empty(); }
};

enum class State : uint8_t {
  kIdle,
  kReady,       ///< In the ready queue.
  kComputing,   ///< Handed out as kAttention or kHead, until route() or finish_step().
  kDispatched,  ///< Waits for answers.
  kAborting,    ///< Its step is over; dispatches are still outstanding.
};

const char* state_name(State state) {
  switch (state) {
    case State::kIdle:
      return "idle";
    case State::kReady:
    case State::kComputing:
      return "ready";
    case State::kDispatched:
      return "dispatched";
    case State::kAborting:
      return "aborting";
  }
  std::abort();
}

struct MicroBatch {
  State state = State::kIdle;
  const StepPlan* plan = nullptr;
  uint32_t row_count = 0;
  Routes* routes = nullptr;  ///< The step's map.
  Work::Stage stage = Work::Stage::kAttention;
  uint32_t layer = 0;
  uint32_t fragment = 0;
  bool returned = false;         ///< kReady with a fragment whose answers are to be combined.
  std::vector<uint32_t> expert;  ///< [row_count * top_k], the router's choice in `layer`.
  std::vector<bool> row_ended;   ///< Rows that are not dispatched: their sequence ended in route().
  /// The flights of the fragment, [0, flight_count); those behind keep their memory for later.
  std::vector<Flight> flights;
  uint32_t flight_count = 0;
  /// The finished fragment, to be combined by the next Work.
  uint32_t combine_begin = 0, combine_end = 0;
  std::vector<AnswerRef> answers;

  std::span<Flight> live_flights() { return {flights.data(), flight_count}; }
  std::span<const Flight> live_flights() const { return {flights.data(), flight_count}; }
};

struct Outgoing {
  uint32_t micro_batch = 0;
  LinkId link;
  uint32_t slot = 0;
};

std::string place_name(uint32_t layer, uint32_t expert) {
  return fmt::format("layer {} expert {}", layer, expert);
}

}  // namespace

struct AttentionCore::Impl {
  explicit Impl(AttentionCoreOptions given);

  const AttentionCoreOptions options;
  BatchScheduler scheduler;
  std::map<LinkId, Link> links;
  std::vector<std::unique_ptr<Routes>> routes;  ///< The newest is last.
  Status map_error = ok_status();               ///< Why the last map that was offered is not used.
  Status ready_status;
  bool became_unready = false;  ///< A link was lost and with it readiness, since the last tick().
  std::vector<MicroBatch> micro_batches;
  std::vector<uint32_t> ready;  ///< First come, first served; at most one entry per micro-batch.
  std::vector<uint32_t> turn;   ///< [layers * experts], round robin over the holders.
  std::vector<Outgoing> outgoing;
  std::vector<OutgoingDispatch> taken;
  std::vector<LinkId> silent;
  std::vector<Pair> moved;  ///< Scratch: pairs that look for another holder.
  std::vector<uint32_t> lost_slots;

  uint32_t takeover_slot(uint32_t micro_batch) const {
    return options.geometry.micro_batches + micro_batch;
  }
  uint32_t fragment_count(const MicroBatch& batch) const {
    const uint32_t rows_max = options.geometry.dispatch.rows_max;
    return (batch.row_count + rows_max - 1) / rows_max;
  }
  Routes* newest() { return routes.empty() ? nullptr : routes.back().get(); }

  void find_links(Routes& target);
  void update_readiness();
  Status readiness() const;
  void drop_unused_routes();

  bool has_live_holder(const Routes& use, uint32_t layer, uint32_t expert) const;
  Link* choose_holder(const Routes& use, uint32_t layer, uint32_t expert);
  const Pair* first_without_holder(const Routes& use, uint32_t layer,
                                   std::span<const Pair> pairs) const;

  Flight& add_flight(MicroBatch& batch, Link* link, uint32_t slot);
  Flight* find_flight(MicroBatch& batch, LinkId link, uint32_t slot);
  void remove_flight(MicroBatch& batch, const Flight& flight);
  void launch(uint32_t index, Flight& flight);
  void collect_rows(MicroBatch& batch);
  void dispatch_fragment(uint32_t index);
  void dispatch_again(uint32_t index);
  void check_returned(uint32_t index);
  void note_answers(MicroBatch& batch);

  void start_steps();
  bool take_work(uint32_t index, Work& work);
  void set_ready(uint32_t index);
  void abort(uint32_t index, const Status& status);
  void end_step(uint32_t index);

  Status check_answer(const Flight& flight, const MessageHeader& header) const;
  void on_refusal(uint32_t index, Flight& flight, Refusal refusal);
};

AttentionCore::Impl::Impl(AttentionCoreOptions given)
    : options(std::move(given)),
      scheduler(options.scheduler),
      micro_batches(options.scheduler.micro_batches) {
  const protocol::LinkGeometry& geometry = options.geometry;
  VOLLEY_CHECK(geometry.micro_batches >= options.scheduler.micro_batches);
  VOLLEY_CHECK(geometry.micro_batches <= protocol::kMicroBatchesMax);
  VOLLEY_CHECK(options.layers >= 1 && options.experts >= 1);
  VOLLEY_CHECK(options.top_k >= 1 && options.top_k <= options.experts);
  VOLLEY_CHECK(geometry.dispatch.rows_max >= 1);
  // Any one node may have to take a whole fragment, when it holds all experts or takes over from
  // others.
  VOLLEY_CHECK(geometry.dispatch.entries_max >= geometry.dispatch.rows_max * options.top_k);
  VOLLEY_CHECK(geometry.answer.rows_max >= geometry.dispatch.entries_max);
  const uint32_t rows_max = options.scheduler.tokens_per_step_max;
  VOLLEY_CHECK((rows_max + geometry.dispatch.rows_max - 1) / geometry.dispatch.rows_max <= 0xffff);

  turn.resize(size_t{options.layers} * options.experts, 0);
  const size_t fragment_pairs = size_t{geometry.dispatch.rows_max} * options.top_k;
  for (MicroBatch& batch : micro_batches) {
    batch.expert.reserve(size_t{rows_max} * options.top_k);
    batch.row_ended.reserve(rows_max);
    batch.answers.reserve(fragment_pairs);
  }
  moved.reserve(fragment_pairs);
  ready.reserve(micro_batches.size());
  ready_status = readiness();
}

// --- The map and the links ---

void AttentionCore::Impl::find_links(Routes& target) {
  const std::vector<ExpertMap::Node>& nodes = target.map->nodes;
  target.link_of_node.assign(nodes.size(), nullptr);
  for (size_t node = 0; node < nodes.size(); ++node) {
    for (auto& [id, link] : links) {
      if (link.node != nodes[node].name || link.incarnation != nodes[node].incarnation) continue;
      target.link_of_node[node] = &link;
      break;
    }
  }
}

Status AttentionCore::Impl::readiness() const {
  if (!map_error.ok()) return map_error;
  if (routes.empty()) return unavailable("no expert map is known");
  const Routes& use = *routes.back();
  const ExpertMap& map = *use.map;
  for (uint32_t layer = 0; layer < options.layers; ++layer) {
    for (uint32_t expert = 0; expert < options.experts; ++expert) {
      if (has_live_holder(use, layer, expert)) continue;
      const auto holders = map.holders_of(layer, expert);
      if (holders.empty()) {
        return unavailable("{} has no holder in map {}.{}", place_name(layer, expert),
                           map.version.term, map.version.number);
      }
      return unavailable("{} is held by {}, to which there is no link", place_name(layer, expert),
                         map.nodes[holders.front()].name);
    }
  }
  return ok_status();
}

void AttentionCore::Impl::update_readiness() {
  for (const std::unique_ptr<Routes>& use : routes) find_links(*use);
  ready_status = readiness();
}

/// Keeps the newest and those that a step uses.
void AttentionCore::Impl::drop_unused_routes() {
  const Routes* last = newest();
  std::erase_if(routes, [&](const std::unique_ptr<Routes>& use) {
    return use.get() != last &&
           std::none_of(micro_batches.begin(), micro_batches.end(),
                        [&](const MicroBatch& batch) { return batch.routes == use.get(); });
  });
}

bool AttentionCore::Impl::has_live_holder(const Routes& use, uint32_t layer,
                                          uint32_t expert) const {
  for (const uint32_t node : use.map->holders_of(layer, expert)) {
    if (use.link_of_node[node] != nullptr) return true;
  }
  return false;
}

/// Round robin over the live holders, of which there must be one.
Link* AttentionCore::Impl::choose_holder(const Routes& use, uint32_t layer, uint32_t expert) {
  const auto holders = use.map->holders_of(layer, expert);
  const auto live = [&](uint32_t node) { return use.link_of_node[node] != nullptr; };
  const auto live_count =
      static_cast<uint32_t>(std::count_if(holders.begin(), holders.end(), live));
  VOLLEY_CHECK(live_count > 0);
  uint32_t skip = 0;
  if (live_count > 1) skip = turn[size_t{layer} * options.experts + expert]++ % live_count;
  for (const uint32_t node : holders) {
    if (live(node) && skip-- == 0) return use.link_of_node[node];
  }
  std::abort();  // The count above says that one is found.
}

const Pair* AttentionCore::Impl::first_without_holder(const Routes& use, uint32_t layer,
                                                      std::span<const Pair> pairs) const {
  for (const Pair& pair : pairs) {
    if (!has_live_holder(use, layer, pair.expert)) return &pair;
  }
  return nullptr;
}

// --- Flights ---

Flight& AttentionCore::Impl::add_flight(MicroBatch& batch, Link* link, uint32_t slot) {
  if (batch.flight_count == batch.flights.size()) batch.flights.emplace_back();
  Flight& flight = batch.flights[batch.flight_count++];
  flight.link = link;
  flight.slot = slot;
  flight.outstanding = false;
  flight.entries.clear();
  flight.rows.clear();
  flight.pairs.clear();
  flight.queued.clear();
  return flight;
}

Flight* AttentionCore::Impl::find_flight(MicroBatch& batch, LinkId link, uint32_t slot) {
  for (Flight& flight : batch.live_flights()) {
    if (flight.link->id == link && flight.slot == slot) return &flight;
  }
  return nullptr;
}

void AttentionCore::Impl::remove_flight(MicroBatch& batch, const Flight& flight) {
  const auto place = static_cast<size_t>(&flight - batch.flights.data());
  VOLLEY_CHECK(place < batch.flight_count);
  std::swap(batch.flights[place], batch.flights[--batch.flight_count]);
}

/// Sends what is queued in the flight. What the slot carried before, if anything, goes again with
/// it: its answer would be overwritten by the new one before it is combined.
void AttentionCore::Impl::launch(uint32_t index, Flight& flight) {
  MicroBatch& batch = micro_batches[index];
  VOLLEY_CHECK(!flight.outstanding);
  flight.pairs.insert(flight.pairs.end(), flight.queued.begin(), flight.queued.end());
  flight.queued.clear();
  std::sort(flight.pairs.begin(), flight.pairs.end());
  flight.rows.clear();
  flight.entries.clear();
  for (const Pair& pair : flight.pairs) {
    if (flight.rows.empty() || flight.rows.back() != pair.row) flight.rows.push_back(pair.row);
    flight.entries.push_back(
        {.row = static_cast<uint32_t>(flight.rows.size() - 1), .expert = pair.expert});
  }
  std::sort(flight.entries.begin(), flight.entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.expert, a.row) < std::pair(b.expert, b.row);
  });
  VOLLEY_CHECK(flight.rows.size() <= options.geometry.dispatch.rows_max);
  VOLLEY_CHECK(flight.entries.size() <= options.geometry.dispatch.entries_max);

  flight.header = {.kind = MessageKind::kDispatch,
                   .dtype = options.dtype,
                   .incarnation = options.incarnation.value,
                   .sequence = flight.link->slots.post(flight.slot),
                   .slot = static_cast<uint16_t>(flight.slot),
                   .micro_batch = static_cast<uint16_t>(index),
                   .layer = batch.layer,
                   .map = batch.routes->map->version,
                   .fragment = static_cast<uint16_t>(batch.fragment),
                   .fragment_count = static_cast<uint16_t>(fragment_count(batch)),
                   .row_count = static_cast<uint32_t>(flight.rows.size()),
                   .entry_count = static_cast<uint32_t>(flight.entries.size()),
                   .row_bytes = options.geometry.dispatch.row_bytes};
  flight.outstanding = true;
  outgoing.push_back({.micro_batch = index, .link = flight.link->id, .slot = flight.slot});
}

/// Fills `moved` with the (row, expert) pairs of the micro-batch's current fragment.
void AttentionCore::Impl::collect_rows(MicroBatch& batch) {
  moved.clear();
  const uint32_t rows_max = options.geometry.dispatch.rows_max;
  const uint32_t begin = batch.fragment * rows_max;
  const uint32_t end = std::min(begin + rows_max, batch.row_count);
  for (uint32_t row = begin; row < end; ++row) {
    if (batch.row_ended[row]) continue;
    for (uint32_t j = 0; j < options.top_k; ++j) {
      moved.push_back({.row = row, .expert = batch.expert[size_t{row} * options.top_k + j]});
    }
  }
}

/// Dispatches the current fragment to all nodes of the layer, or aborts the step.
void AttentionCore::Impl::dispatch_fragment(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  VOLLEY_CHECK(batch.flight_count == 0);
  collect_rows(batch);
  const Routes& use = *batch.routes;
  if (const Pair* stuck = first_without_holder(use, batch.layer, moved); stuck != nullptr) {
    abort(index, unavailable("{} has no live holder", place_name(batch.layer, stuck->expert)));
    return;
  }
  for (const uint32_t node : use.nodes_of_layer[batch.layer]) {
    if (use.link_of_node[node] != nullptr) add_flight(batch, use.link_of_node[node], index);
  }
  for (const Pair& pair : moved) {
    const Link* link = choose_holder(use, batch.layer, pair.expert);
    Flight* flight = find_flight(batch, link->id, index);
    VOLLEY_CHECK(flight != nullptr);
    flight->queued.push_back(pair);
  }
  batch.state = State::kDispatched;
  for (Flight& flight : batch.live_flights()) launch(index, flight);
  check_returned(index);  // All nodes of the layer may be gone, with no live row that needs them.
}

/// Sends the pairs in `moved` to other live holders through their takeover slots, or aborts the
/// step. A slot that is still busy with another lost link's pairs sends them when its answer is in.
void AttentionCore::Impl::dispatch_again(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  const Routes& use = *batch.routes;
  if (const Pair* stuck = first_without_holder(use, batch.layer, moved); stuck != nullptr) {
    abort(index, unavailable("{} has no live holder", place_name(batch.layer, stuck->expert)));
    return;
  }
  const uint32_t slot = takeover_slot(index);
  for (const Pair& pair : moved) {
    Link* link = choose_holder(use, batch.layer, pair.expert);
    Flight* flight = find_flight(batch, link->id, slot);
    if (flight == nullptr) flight = &add_flight(batch, link, slot);
    flight->queued.push_back(pair);
  }
  for (Flight& flight : batch.live_flights()) {
    if (!flight.outstanding && !flight.queued.empty()) launch(index, flight);
  }
}

/// When every answer of the fragment is in: the micro-batch becomes ready for its next stage.
void AttentionCore::Impl::check_returned(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  const auto flights = batch.live_flights();
  if (!std::all_of(flights.begin(), flights.end(), [](const Flight& f) { return f.done(); }))
    return;
  const bool last_fragment = batch.fragment + 1 == fragment_count(batch);
  const bool last_layer = batch.layer + 1 == options.layers;
  batch.stage = !last_fragment ? Work::Stage::kPack
                : last_layer   ? Work::Stage::kHead
                               : Work::Stage::kAttention;
  batch.returned = true;
  set_ready(index);
}

/// Says where the answers of the current fragment lie.
void AttentionCore::Impl::note_answers(MicroBatch& batch) {
  const uint32_t rows_max = options.geometry.dispatch.rows_max;
  batch.combine_begin = batch.fragment * rows_max;
  batch.combine_end = std::min(batch.combine_begin + rows_max, batch.row_count);
  const size_t ref_count = size_t{batch.combine_end - batch.combine_begin} * options.top_k;
  batch.answers.assign(ref_count, {.link = {}, .slot = 0, .index = AnswerRef::kNone});
  size_t entry_count = 0;
  for (const Flight& flight : batch.live_flights()) {
    for (uint32_t i = 0; i < flight.entries.size(); ++i) {
      const uint32_t row = flight.rows[flight.entries[i].row];
      const auto chosen =
          batch.expert.begin() + static_cast<ptrdiff_t>(size_t{row} * options.top_k);
      const auto j = static_cast<size_t>(
          std::find(chosen, chosen + options.top_k, flight.entries[i].expert) - chosen);
      VOLLEY_CHECK(j < options.top_k);
      AnswerRef& ref = batch.answers[size_t{row - batch.combine_begin} * options.top_k + j];
      VOLLEY_CHECK(ref.index == AnswerRef::kNone);
      ref = {.link = flight.link->id, .slot = flight.slot, .index = i};
    }
    entry_count += flight.entries.size();
  }
  size_t ended_rows = 0;
  for (uint32_t row = batch.combine_begin; row < batch.combine_end; ++row) {
    if (batch.row_ended[row]) ++ended_rows;
  }
  VOLLEY_CHECK(entry_count + ended_rows * options.top_k == ref_count);
}

// --- Steps ---

void AttentionCore::Impl::start_steps() {
  if (!ready_status.ok()) return;
  for (uint32_t index = 0; index < micro_batches.size(); ++index) {
    MicroBatch& batch = micro_batches[index];
    if (batch.state != State::kIdle) continue;
    const StepPlan& plan = scheduler.plan(index);
    if (plan.empty()) continue;
    batch.plan = &plan;
    batch.row_count = plan.row_count;
    batch.routes = newest();
    batch.stage = Work::Stage::kAttention;
    batch.layer = 0;
    batch.fragment = 0;
    batch.returned = false;
    batch.row_ended.assign(plan.row_count, false);
    set_ready(index);
  }
}

void AttentionCore::Impl::set_ready(uint32_t index) {
  micro_batches[index].state = State::kReady;
  ready.push_back(index);
}

/// Hands out a ready micro-batch. From here on its receive slots may be written again: the shell
/// combines first. False: the step was aborted instead.
bool AttentionCore::Impl::take_work(uint32_t index, Work& work) {
  MicroBatch& batch = micro_batches[index];
  VOLLEY_CHECK(batch.state == State::kReady);
  work = {};
  work.micro_batch = index;
  work.stage = batch.stage;
  work.plan = batch.plan;
  if (batch.returned) {
    note_answers(batch);
    work.combine_begin = batch.combine_begin;
    work.combine_end = batch.combine_end;
    work.answers = batch.answers;
    batch.flight_count = 0;
    batch.returned = false;
    if (batch.stage == Work::Stage::kPack) {
      ++batch.fragment;
    } else {
      batch.fragment = 0;
      if (batch.stage == Work::Stage::kAttention) ++batch.layer;
    }
  }
  work.layer = batch.layer;
  if (batch.stage == Work::Stage::kPack) {
    dispatch_fragment(index);
    return batch.plan != nullptr;
  }
  batch.state = State::kComputing;
  return true;
}

/// Ends the step's sequences; the micro-batch is idle once nothing of it is outstanding (MB-4).
void AttentionCore::Impl::abort(uint32_t index, const Status& status) {
  MicroBatch& batch = micro_batches[index];
  scheduler.abort_step(index, status);
  std::erase(ready, index);
  batch.plan = nullptr;
  batch.state = State::kAborting;
  for (uint32_t i = batch.flight_count; i > 0; --i) {
    Flight& flight = batch.flights[i - 1];
    flight.queued.clear();
    if (!flight.outstanding) remove_flight(batch, flight);
  }
  if (batch.flight_count == 0) end_step(index);
}

void AttentionCore::Impl::end_step(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  VOLLEY_CHECK(batch.flight_count == 0);
  batch.state = State::kIdle;
  batch.plan = nullptr;
  batch.row_count = 0;
  batch.routes = nullptr;
  drop_unused_routes();
}

// --- Messages ---

Status AttentionCore::Impl::check_answer(const Flight& flight, const MessageHeader& header) const {
  const auto mismatch = [&](const char* field, uint64_t value, uint64_t expected) {
    return data_loss("expert node {}: answer in slot {} has {} {}, the dispatch says {}",
                     flight.link->node, flight.slot, field, value, expected);
  };
  if (header.layer != flight.header.layer) {
    return mismatch("layer", header.layer, flight.header.layer);
  }
  if (header.micro_batch != flight.header.micro_batch) {
    return mismatch("micro-batch", header.micro_batch, flight.header.micro_batch);
  }
  if (header.fragment != flight.header.fragment) {
    return mismatch("fragment", header.fragment, flight.header.fragment);
  }
  if (header.kind == MessageKind::kAnswer && header.row_count != flight.entries.size()) {
    return mismatch("row count", header.row_count, flight.entries.size());
  }
  return ok_status();
}

void AttentionCore::Impl::on_refusal(uint32_t index, Flight& flight, Refusal refusal) {
  MicroBatch& batch = micro_batches[index];
  const MapVersion sent_with = flight.header.map;
  const std::string& node = flight.link->node;
  if (refusal == Refusal::kNotFinite) {
    abort(index, internal_error("layer {}: expert node {} met a value that is not finite",
                                batch.layer, node));
    return;
  }
  // Stale map, or an expert that the node does not hold: only another map can help.
  Routes* const use = newest();
  if (use->map->version == sent_with) {
    abort(index, unavailable("layer {}: expert node {} refuses map {}.{} and no newer one is known",
                             batch.layer, node, sent_with.term, sent_with.number));
    return;
  }
  moved.assign(flight.pairs.begin(), flight.pairs.end());
  moved.insert(moved.end(), flight.queued.begin(), flight.queued.end());
  remove_flight(batch, flight);
  batch.routes = use;
  drop_unused_routes();
  dispatch_again(index);
  if (batch.state == State::kDispatched) check_returned(index);
}

// --- The public face ---

AttentionCore::AttentionCore(AttentionCoreOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
AttentionCore::~AttentionCore() = default;

BatchScheduler& AttentionCore::scheduler() {
  return impl_->scheduler;
}

void AttentionCore::set_map(std::shared_ptr<const ExpertMap> map) {
  Impl& s = *impl_;
  VOLLEY_CHECK(map != nullptr);
  if (Routes* last = s.newest(); last != nullptr && map->version <= last->map->version) return;
  const size_t lists = size_t{s.options.layers} * s.options.experts;
  if (map->layers != s.options.layers || map->experts != s.options.experts ||
      map->holders.size() != lists) {
    s.map_error = unavailable("map {}.{} has {} layers and {} experts, the model {} and {}",
                              map->version.term, map->version.number, map->layers, map->experts,
                              s.options.layers, s.options.experts);
    s.update_readiness();
    return;
  }
  s.map_error = ok_status();
  auto use = std::make_unique<Routes>();
  use->map = std::move(map);
  use->nodes_of_layer.resize(s.options.layers);
  for (uint32_t layer = 0; layer < s.options.layers; ++layer) {
    std::vector<uint32_t>& nodes = use->nodes_of_layer[layer];
    for (uint32_t expert = 0; expert < s.options.experts; ++expert) {
      const auto holders = use->map->holders_of(layer, expert);
      nodes.insert(nodes.end(), holders.begin(), holders.end());
    }
    std::sort(nodes.begin(), nodes.end());
    nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  }
  s.routes.push_back(std::move(use));
  s.drop_unused_routes();
  s.update_readiness();
}

void AttentionCore::link_opened(LinkId link, const std::string& node, Incarnation incarnation) {
  Impl& s = *impl_;
  const auto [place, inserted] =
      s.links.emplace(link, Link{.id = link,
                                 .node = node,
                                 .incarnation = incarnation,
                                 .slots = protocol::DispatchLink(s.options.geometry.slot_count()),
                                 .heard = std::nullopt});
  VOLLEY_CHECK(inserted);
  s.update_readiness();
}

void AttentionCore::link_closed(LinkId link) {
  Impl& s = *impl_;
  const auto found = s.links.find(link);
  if (found == s.links.end()) return;
  const bool was_ready = s.ready_status.ok();
  std::erase_if(s.outgoing, [&](const Outgoing& message) { return message.link == link; });
  found->second.slots.fail(s.lost_slots);
  // The node leaves the map of links now, so that nothing is sent to it, and lives until its
  // flights are gone.
  const auto closed = s.links.extract(found);
  s.update_readiness();
  if (was_ready && !s.ready_status.ok()) s.became_unready = true;

  for (uint32_t index = 0; index < s.micro_batches.size(); ++index) {
    MicroBatch& batch = s.micro_batches[index];
    const uint32_t flights_before = batch.flight_count;
    s.moved.clear();
    for (uint32_t i = batch.flight_count; i > 0; --i) {
      Flight& flight = batch.flights[i - 1];
      if (flight.link != &closed.mapped()) continue;
      s.moved.insert(s.moved.end(), flight.pairs.begin(), flight.pairs.end());
      s.moved.insert(s.moved.end(), flight.queued.begin(), flight.queued.end());
      s.remove_flight(batch, flight);
    }
    if (batch.flight_count == flights_before) continue;
    if (batch.state == State::kAborting) {
      if (batch.flight_count == 0) s.end_step(index);
      continue;
    }
    if (batch.state == State::kReady) {
      if (s.moved.empty()) continue;  // It had only to answer that nothing was for it.
      std::erase(s.ready, index);
      batch.returned = false;
      batch.state = State::kDispatched;
    }
    VOLLEY_CHECK(batch.state == State::kDispatched);
    s.dispatch_again(index);
    if (batch.state == State::kDispatched) s.check_returned(index);
  }
}

Status AttentionCore::ready() const {
  return impl_->ready_status;
}

Status AttentionCore::on_message(LinkId link, uint32_t slot, const MessageHeader& header) {
  Impl& s = *impl_;
  const auto found = s.links.find(link);
  if (found == s.links.end()) return data_loss("message on link {}, which is not open", link.value);
  Link& from = found->second;
  if (slot >= s.options.geometry.slot_count()) {
    return data_loss("expert node {}: slot {} of {}", from.node, slot,
                     s.options.geometry.slot_count());
  }
  if (header.kind != MessageKind::kAnswer && header.kind != MessageKind::kRefusal) {
    return data_loss("expert node {}: message kind {} where an answer must be", from.node,
                     static_cast<uint32_t>(header.kind));
  }
  if (!from.slots.expects(slot, header.sequence)) return ok_status();  // LINK-3: stale.

  const uint32_t index = slot % s.options.geometry.micro_batches;
  VOLLEY_CHECK(index < s.micro_batches.size());
  MicroBatch& batch = s.micro_batches[index];
  Flight* flight = s.find_flight(batch, link, slot);
  VOLLEY_CHECK(flight != nullptr && flight->outstanding);
  VOLLEY_RETURN_IF_ERROR(s.check_answer(*flight, header));
  VOLLEY_CHECK(from.slots.on_answer(slot, header.sequence) ==
               protocol::DispatchLink::Answer::kAccepted);
  flight->outstanding = false;
  if (batch.state == State::kAborting) {
    s.remove_flight(batch, *flight);
    if (batch.flight_count == 0) s.end_step(index);
    return ok_status();
  }
  VOLLEY_CHECK(batch.state == State::kDispatched);
  const bool refused = header.kind == MessageKind::kRefusal;
  // A refusal of an empty dispatch on account of the map loses nothing: it counts as the answer.
  if (refused && (header.refusal == Refusal::kNotFinite || !flight->entries.empty())) {
    s.on_refusal(index, *flight, header.refusal);
    return ok_status();
  }
  if (!flight->queued.empty()) s.launch(index, *flight);
  s.check_returned(index);
  return ok_status();
}

bool AttentionCore::next_work(Work& work) {
  Impl& s = *impl_;
  while (true) {
    s.start_steps();
    if (s.ready.empty()) return false;
    const uint32_t index = s.ready.front();
    s.ready.erase(s.ready.begin());
    if (s.take_work(index, work)) return true;
    // Its next fragment could not be dispatched, so the step was aborted.
  }
}

void AttentionCore::route(uint32_t micro_batch, std::span<const uint32_t> expert) {
  Impl& s = *impl_;
  VOLLEY_CHECK(micro_batch < s.micro_batches.size());
  MicroBatch& batch = s.micro_batches[micro_batch];
  VOLLEY_CHECK(batch.state == State::kComputing && batch.stage == Work::Stage::kAttention);
  const uint32_t top_k = s.options.top_k;
  VOLLEY_CHECK(expert.size() == size_t{batch.row_count} * top_k);
  batch.expert.assign(expert.begin(), expert.end());
  for (const Chunk& chunk : batch.plan->chunks) {
    if (batch.row_ended[chunk.first_row]) continue;
    const auto chosen =
        expert.subspan(size_t{chunk.first_row} * top_k, size_t{chunk.row_count} * top_k);
    const bool valid = std::all_of(chosen.begin(), chosen.end(),
                                   [&](uint32_t id) { return id < s.options.experts; });
    if (!valid) {
      s.scheduler.cancel(
          chunk.sequence,
          internal_error("layer {}: the router's logits of sequence {} are not finite", batch.layer,
                         chunk.sequence.value));
      std::fill_n(batch.row_ended.begin() + chunk.first_row, chunk.row_count, true);
      continue;
    }
    for (size_t i = 1; i < chosen.size(); ++i) {
      VOLLEY_CHECK(i % top_k == 0 || chosen[i - 1] < chosen[i]);
    }
  }
  s.dispatch_fragment(micro_batch);
}

void AttentionCore::finish_step(uint32_t micro_batch,
                                std::span<const BatchScheduler::Sampled> sampled) {
  Impl& s = *impl_;
  VOLLEY_CHECK(micro_batch < s.micro_batches.size());
  const MicroBatch& batch = s.micro_batches[micro_batch];
  VOLLEY_CHECK(batch.state == State::kComputing && batch.stage == Work::Stage::kHead);
  s.scheduler.complete(micro_batch, sampled);
  s.end_step(micro_batch);
}

std::span<const OutgoingDispatch> AttentionCore::take_dispatches() {
  Impl& s = *impl_;
  s.taken.clear();
  for (const Outgoing& message : s.outgoing) {
    const Flight* flight =
        s.find_flight(s.micro_batches[message.micro_batch], message.link, message.slot);
    VOLLEY_CHECK(flight != nullptr && flight->outstanding);
    s.taken.push_back({.link = message.link,
                       .slot = message.slot,
                       .header = flight->header,
                       .entries = flight->entries,
                       .rows = flight->rows});
  }
  s.outgoing.clear();
  return s.taken;
}

void AttentionCore::heard(LinkId link, Nanos when) {
  const auto found = impl_->links.find(link);
  if (found == impl_->links.end()) return;
  std::optional<Nanos>& last = found->second.heard;
  last = last.has_value() ? std::max(*last, when) : when;
}

std::span<const LinkId> AttentionCore::tick(Nanos now) {
  Impl& s = *impl_;
  s.scheduler.tick(now);
  // The one place that decides what becomes of the sequences when an expert has lost its last
  // holder: they end. Waiting for a new map instead needs only this to change, and the abort in
  // dispatch_again().
  if (std::exchange(s.became_unready, false) && !s.ready_status.ok()) {
    s.scheduler.cancel_all(s.ready_status);
  }
  s.silent.clear();
  for (auto& [id, link] : s.links) {
    if (!link.heard.has_value()) link.heard = now;
    if (now - *link.heard > s.options.link_timeout) s.silent.push_back(id);
  }
  return s.silent;
}

AttentionCore::MicroBatchView AttentionCore::view(uint32_t micro_batch) const {
  VOLLEY_CHECK(micro_batch < impl_->micro_batches.size());
  const MicroBatch& batch = impl_->micro_batches[micro_batch];
  const auto flights = batch.live_flights();
  return {.state = state_name(batch.state),
          .layer = batch.layer,
          .rows = batch.row_count,
          .answers_missing = static_cast<uint32_t>(std::count_if(
              flights.begin(), flights.end(), [](const Flight& f) { return !f.done(); }))};
}

}  // namespace volley::scheduler
