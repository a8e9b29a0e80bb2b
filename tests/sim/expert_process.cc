#include "sim/expert_process.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "volley/base/check.h"

namespace volley::sim {

using protocol::Entry;
using protocol::MessageHeader;
using protocol::Refusal;
using scheduler::GatherDecision;

ExpertProcess::ExpertProcess(World& world, Network& network, Checkers& checkers,
                             const ProcessOptions& options, std::string name, uint64_t incarnation,
                             std::vector<uint32_t> experts)
    : Process(world, network, checkers, options, std::move(name), incarnation),
      experts_(std::move(experts)),
      gather_({.layers = options.shape.layers, .rows_max = 64}) {}

void ExpertProcess::turn() {
  while (!inbox_.empty()) {
    const Arrival arrival = inbox_.front();
    inbox_.pop_front();
    take(arrival);
  }
  start_run();
}

void ExpertProcess::tick() {
  std::vector<uint32_t> silent;
  for (const auto& [id, link] : links_) {
    if (world_.now() - heard(id) > options_.link_timeout) silent.push_back(id);
  }
  for (const uint32_t id : silent) close(id);
  start_run();
}

void ExpertProcess::take(const Arrival& arrival) {
  if (arrival.kind == Arrival::kOpened) {
    if (!network_.open_at(arrival.link, *this)) return;
    opened(arrival.link);
    links_.emplace(arrival.link, Link(arrival.origin, options_.geometry.slot_count()));
    gather_.on_link_opened(LinkId{arrival.link}, options_.geometry.micro_batches);
    return;
  }
  const auto found = links_.find(arrival.link);
  if (found == links_.end()) return;  // Closed before this was handled.
  if (arrival.kind == Arrival::kClosed) {
    close(arrival.link);
  } else {
    take_message(found->second, arrival);
  }
}

void ExpertProcess::take_message(Link& link, const Arrival& arrival) {
  pulse_from(arrival.link);
  const uint32_t id = arrival.link, slot = arrival.slot;
  const protocol::SlotLayout& layout = options_.geometry.dispatch;
  const protocol::Expectation expected{.kind = protocol::MessageKind::kDispatch,
                                       .incarnation = link.incarnation,
                                       .link = id,
                                       .slot = slot,
                                       .layers = options_.shape.layers,
                                       .experts = options_.shape.experts,
                                       .dtype = 1,
                                       .layout = layout,
                                       .micro_batches = options_.geometry.micro_batches};
  if (!protocol::validate_header(arrival.header, expected).ok()) {
    close(id);
    return;
  }
  checkers_.incarnations.accepted(id, link.incarnation, arrival.origin_link, arrival.origin);
  switch (link.answers.on_dispatch(slot, arrival.header.sequence)) {
    case protocol::AnswerLink::Dispatch::kCompute:
      break;
    case protocol::AnswerLink::Dispatch::kRepeat:
      if (options_.bug == Bug::kAnswerTwice) {
        checkers_.links.computed(id, slot, arrival.header.sequence);
        answer(id, link, slot, Refusal::kNone, 0);
      }
      return;  // The announcement was the duplicate, not the message: its answer is under way.
    case protocol::AnswerLink::Dispatch::kDuplicate:
    case protocol::AnswerLink::Dispatch::kStale:
      return;
    case protocol::AnswerLink::Dispatch::kViolation:
      close(id);
      return;
  }
  // Only now: with the second announcement of an old message the slot may hold a newer one.
  const MessageHeader& header = arrival.header;
  const auto entries =
      protocol::entries_of(network_.recv_slot(id, *this, slot), layout, header.entry_count);
  if (!protocol::validate_entries(entries, header.row_count, options_.shape.experts).ok()) {
    close(id);
    return;
  }
  checkers_.links.computed(id, slot, header.sequence);
  link.dispatches[slot] = header;
  if (header.map < oldest_map_) {
    answer(id, link, slot, Refusal::kStaleMap, 0);
    link.answers.on_answered(slot);
    return;
  }
  const bool held = std::all_of(entries.begin(), entries.end(), [&](const Entry& entry) {
    return std::find(experts_.begin(), experts_.end(), entry.expert) != experts_.end();
  });
  if (!held) {
    answer(id, link, slot, Refusal::kNotHeld, 0);
    link.answers.on_answered(slot);
    return;
  }
  gather_.on_dispatch({.link = LinkId{id},
                       .slot = slot,
                       .layer = header.layer,
                       .entry_count = header.entry_count,
                       .arrived = world_.now()});
}

void ExpertProcess::close(uint32_t id) {
  network_.close(id, *this);
  links_.erase(id);
  forget(id);
  gather_.on_link_closed(LinkId{id});
}

void ExpertProcess::start_run() {
  if (busy()) return;
  const GatherDecision decision = gather_.decide(world_.now());
  if (decision.kind == GatherDecision::Kind::kWait) {
    world_.after(decision.wait_until - world_.now(), [this] { wake(); });
    return;
  }
  if (decision.kind == GatherDecision::Kind::kIdle) return;
  run_.assign(decision.dispatches.begin(), decision.dispatches.end());
  uint32_t entries = 0;
  for (const auto& dispatch : run_) entries += dispatch.entry_count;
  world_.note(30, decision.layer, run_.size());
  const Nanos began = world_.now();
  compute(entries == 0 ? kMicrosecond : options_.compute + entries * 100,
          [this, began] { finish_run(began); });
}

void ExpertProcess::finish_run(Nanos began) {
  const bool bad = world_.random().chance(options_.bad_numbers);
  bool several = false;
  for (const auto& dispatch : run_) several |= dispatch.link != run_.front().link;
  for (const auto& dispatch : run_) {
    const auto found = links_.find(dispatch.link.value);
    if (found == links_.end()) continue;
    if (planted(Bug::kForgetAnswer, 0.005)) continue;
    const uint64_t tamper = several && options_.bug == Bug::kMixAnswers ? dispatch.link.value : 0;
    answer(found->first, found->second, dispatch.slot,
           bad && dispatch.entry_count > 0 ? Refusal::kNotFinite : Refusal::kNone, tamper);
    found->second.answers.on_answered(dispatch.slot);
  }
  gather_.on_answered(world_.now(), world_.now() - began);
}

void ExpertProcess::answer(uint32_t id, Link& link, uint32_t slot, Refusal refusal,
                           uint64_t tamper) {
  const MessageHeader& dispatch = link.dispatches[slot];
  const protocol::SlotLayout& from = options_.geometry.dispatch;
  const protocol::SlotLayout& to = options_.geometry.answer;
  const std::byte* source = network_.recv_slot(id, *this, slot);
  std::byte* target = network_.send_slot(id, *this, slot);
  MessageHeader& header = protocol::header_of(target);
  header = dispatch;
  header.kind =
      refusal == Refusal::kNone ? protocol::MessageKind::kAnswer : protocol::MessageKind::kRefusal;
  header.refusal = refusal;
  header.incarnation = incarnation();
  header.row_count = refusal == Refusal::kNone ? dispatch.entry_count : 0;
  header.entry_count = 0;
  const auto entries = protocol::entries_of(source, from, dispatch.entry_count);
  for (uint32_t i = 0; i < header.row_count; ++i) {
    uint64_t row = 0;
    std::memcpy(&row, protocol::row_of(source, from, entries[i].row), sizeof row);
    const uint64_t result = expert_answer(dispatch.layer, entries[i].expert, row) + tamper;
    std::memcpy(protocol::row_of(target, to, i), &result, sizeof result);
  }
  network_.post(id, *this, slot);
}

}  // namespace volley::sim
