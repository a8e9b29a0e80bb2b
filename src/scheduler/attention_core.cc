// The attention node as a pure machine: what each event means for the micro-batches. What one of
// them has sent and where its answers lie is kept by its flights (flights.h), who gets what by the
// routes (routes.h), and the way through the layers by micro_batch.h.

#include "volley/scheduler/attention_core.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "flights.h"
#include "micro_batch.h"
#include "routes.h"
#include "volley/base/check.h"
#include "volley/protocol/link.h"

namespace volley::scheduler {

using protocol::ExpertMap;
using protocol::MapVersion;
using protocol::MessageHeader;
using protocol::MessageKind;
using protocol::Refusal;
using State = MicroBatch::State;

namespace {

struct Outgoing {
  uint32_t micro_batch = 0;
  LinkId link;
  uint32_t slot = 0;
};

}  // namespace

struct AttentionCore::Impl {
  explicit Impl(AttentionCoreOptions given);

  const AttentionCoreOptions options;
  BatchScheduler scheduler;
  ExpertLinks links;
  RouteTable routes;
  bool became_unready = false;  ///< A link was lost and with it readiness, since the last tick().
  std::vector<MicroBatch> micro_batches;
  std::vector<uint32_t> ready;  ///< First come, first served; at most one entry per micro-batch.
  std::vector<Outgoing> outgoing;
  std::vector<OutgoingDispatch> taken;
  std::vector<LinkId> silent;
  std::vector<Pair> moved;  ///< Scratch: pairs that look for a holder.

  uint32_t takeover_slot(uint32_t micro_batch) const {
    return options.geometry.micro_batches + micro_batch;
  }

  void launch(uint32_t index, Flight& flight);
  void dispatch_fragment(uint32_t index);
  void dispatch_again(uint32_t index);
  void check_returned(uint32_t index);
  void lose_flights(uint32_t index, const ExpertLink& closed);
  void on_refusal(uint32_t index, Flight& flight, Refusal refusal);

  void start_steps();
  bool take_work(uint32_t index, Work& work);
  void set_ready(uint32_t index);
  void abort(uint32_t index, const Status& status);
  void end_step(uint32_t index);
};

AttentionCore::Impl::Impl(AttentionCoreOptions given)
    : options(std::move(given)),
      scheduler(options.scheduler),
      routes(options.layers, options.experts, links) {
  const protocol::LinkGeometry& geometry = options.geometry;
  VOLLEY_CHECK(geometry.micro_batches >= options.scheduler.micro_batches);
  VOLLEY_CHECK(geometry.micro_batches <= protocol::kMicroBatchesMax);
  VOLLEY_CHECK(options.layers >= 1 && options.experts >= 1);
  VOLLEY_CHECK(options.top_k >= 1 && options.top_k <= options.experts);
  VOLLEY_CHECK(geometry.dispatch.rows_max >= 1);
  // Any one node may have to take a whole fragment, when it holds all experts or takes over from
  // others.
  VOLLEY_CHECK(geometry.dispatch.entries_max >= geometry.dispatch.rows_max * options.top_k);
  VOLLEY_CHECK(geometry.answer.rows_max >= geometry.answer_rows_max());
  const uint32_t rows_max = options.scheduler.tokens_per_step_max;
  VOLLEY_CHECK((rows_max + geometry.dispatch.rows_max - 1) / geometry.dispatch.rows_max <= 0xffff);

  const StepShape shape = {.layers = options.layers,
                           .top_k = options.top_k,
                           .fragment_rows_max = geometry.dispatch.rows_max,
                           .combine = geometry.combine()};
  micro_batches.reserve(options.scheduler.micro_batches);
  while (micro_batches.size() < options.scheduler.micro_batches) {
    micro_batches.emplace_back(shape, rows_max);
  }
  moved.reserve(size_t{geometry.dispatch.rows_max} * options.top_k);
  ready.reserve(micro_batches.size());
}

// --- Dispatches and their answers ---

/// Sends what is queued in the flight.
void AttentionCore::Impl::launch(uint32_t index, Flight& flight) {
  const MicroBatch& batch = micro_batches[index];
  flight.launch({.kind = MessageKind::kDispatch,
                 .dtype = options.dtype,
                 .incarnation = options.incarnation.value,
                 .micro_batch = static_cast<uint16_t>(index),
                 .layer = batch.layer,
                 .map = batch.routes->map().version,
                 .fragment = static_cast<uint16_t>(batch.fragment),
                 .fragment_count = static_cast<uint16_t>(batch.fragment_count()),
                 .row_bytes = options.geometry.dispatch.row_bytes});
  VOLLEY_CHECK(flight.rows.size() <= options.geometry.dispatch.rows_max);
  VOLLEY_CHECK(flight.entries.size() <= options.geometry.dispatch.entries_max);
  outgoing.push_back({.micro_batch = index, .link = flight.link->id, .slot = flight.slot});
}

/// Dispatches the current fragment to all nodes of the layer, or aborts the step.
void AttentionCore::Impl::dispatch_fragment(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  VOLLEY_CHECK(batch.flights.empty());
  collect_pairs(batch.current_fragment(), moved);
  batch.flights.add_for_layer(*batch.routes, batch.layer, index);
  const Status assigned = batch.flights.assign(moved, *batch.routes, batch.layer, index);
  if (!assigned.ok()) {
    abort(index, assigned);
    return;
  }
  batch.state = State::kDispatched;
  for (Flight& flight : batch.flights.live()) launch(index, flight);
  check_returned(index);  // All nodes of the layer may be gone, with no live row that needs them.
}

/// Sends the pairs in `moved` to other live holders through their takeover slots, or aborts the
/// step. A slot that is still busy with another lost link's pairs sends them when its answer is in.
void AttentionCore::Impl::dispatch_again(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  const Status assigned =
      batch.flights.assign(moved, *batch.routes, batch.layer, takeover_slot(index));
  if (!assigned.ok()) {
    abort(index, assigned);
    return;
  }
  for (Flight& flight : batch.flights.live()) {
    if (!flight.outstanding && !flight.queued.empty()) launch(index, flight);
  }
  check_returned(index);
}

/// When every answer of the fragment is in: the micro-batch becomes ready for its next stage.
void AttentionCore::Impl::check_returned(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  if (batch.flights.missing_count() > 0) return;
  batch.note_returned();
  set_ready(index);
}

/// Finds other holders for what the closed link had to answer to the micro-batch.
void AttentionCore::Impl::lose_flights(uint32_t index, const ExpertLink& closed) {
  MicroBatch& batch = micro_batches[index];
  moved.clear();
  if (batch.flights.take_lost(closed, moved) == 0) return;
  if (batch.state == State::kAborting) {
    if (batch.flights.empty()) end_step(index);
    return;
  }
  if (batch.state == State::kReady) {
    if (moved.empty()) return;  // It had only to answer that nothing was for it.
    std::erase(ready, index);
    batch.returned = false;
    batch.state = State::kDispatched;
  }
  VOLLEY_CHECK(batch.state == State::kDispatched);
  dispatch_again(index);
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
  if (routes.newest()->map().version == sent_with) {
    abort(index, unavailable("layer {}: expert node {} refuses map {}.{} and no newer one is known",
                             batch.layer, node, sent_with.term, sent_with.number));
    return;
  }
  moved.clear();
  batch.flights.take(flight, moved);
  routes.release(*batch.routes);
  batch.routes = &routes.use_newest();
  dispatch_again(index);
}

// --- Steps ---

void AttentionCore::Impl::start_steps() {
  if (!routes.readiness().ok()) return;
  for (uint32_t index = 0; index < micro_batches.size(); ++index) {
    MicroBatch& batch = micro_batches[index];
    if (batch.state != State::kIdle) continue;
    const StepPlan& plan = scheduler.plan(index);
    if (plan.empty()) continue;
    batch.start(plan, routes.use_newest());
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
  batch.hand_out(work);
  if (work.stage == Work::Stage::kPack) {
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
  batch.flights.keep_outstanding();
  if (batch.flights.empty()) end_step(index);
}

void AttentionCore::Impl::end_step(uint32_t index) {
  MicroBatch& batch = micro_batches[index];
  routes.release(*batch.routes);
  batch.end();
}

// --- The public face ---

AttentionCore::AttentionCore(AttentionCoreOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
AttentionCore::~AttentionCore() = default;

BatchScheduler& AttentionCore::scheduler() {
  return impl_->scheduler;
}

void AttentionCore::set_map(std::shared_ptr<const ExpertMap> map) {
  impl_->routes.set_map(std::move(map));
}

void AttentionCore::link_opened(LinkId link, const std::string& node, Incarnation incarnation) {
  Impl& s = *impl_;
  const auto [place, inserted] = s.links.emplace(
      link, ExpertLink{.id = link,
                       .node = node,
                       .incarnation = incarnation,
                       .slots = protocol::DispatchLink(s.options.geometry.slot_count()),
                       .heard = std::nullopt});
  VOLLEY_CHECK(inserted);
  s.routes.bind_links();
}

void AttentionCore::link_closed(LinkId link) {
  Impl& s = *impl_;
  const auto found = s.links.find(link);
  if (found == s.links.end()) return;
  const bool was_ready = ready().ok();
  std::erase_if(s.outgoing, [&](const Outgoing& message) { return message.link == link; });
  std::vector<uint32_t> lost_slots;  // The same as the slots of the link's outstanding flights.
  found->second.slots.fail(lost_slots);
  // The link leaves the table now, so that nothing is sent on it, and lives until its flights are
  // gone.
  const auto closed = s.links.extract(found);
  s.routes.bind_links();
  if (was_ready && !ready().ok()) s.became_unready = true;
  for (uint32_t index = 0; index < s.micro_batches.size(); ++index) {
    s.lose_flights(index, closed.mapped());
  }
}

Status AttentionCore::ready() const {
  return impl_->routes.readiness();
}

Status AttentionCore::on_message(LinkId link, uint32_t slot, const MessageHeader& header) {
  Impl& s = *impl_;
  const auto found = s.links.find(link);
  if (found == s.links.end()) return data_loss("message on link {}, which is not open", link.value);
  ExpertLink& from = found->second;
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
  Flight* flight = batch.flights.find(link, slot);
  VOLLEY_CHECK(flight != nullptr && flight->outstanding);
  VOLLEY_RETURN_IF_ERROR(flight->check_answer(header, s.options.geometry));
  VOLLEY_CHECK(from.slots.on_answer(slot, header.sequence) ==
               protocol::DispatchLink::Answer::kAccepted);
  flight->outstanding = false;
  if (batch.state == State::kAborting) {
    batch.flights.remove(*flight);
    if (batch.flights.empty()) s.end_step(index);
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
        s.micro_batches[message.micro_batch].flights.find(message.link, message.slot);
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
  if (std::exchange(s.became_unready, false) && !ready().ok()) {
    s.scheduler.cancel_all(ready());
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
  return {.state = state_name(batch.state),
          .layer = batch.layer,
          .rows = batch.row_count,
          .answers_missing = batch.flights.missing_count()};
}

}  // namespace volley::scheduler
