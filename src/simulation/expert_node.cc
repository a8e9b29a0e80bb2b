#include "expert_node.h"

#include <algorithm>
#include <utility>

#include "attention_node.h"
#include "volley/base/check.h"

namespace volley::simulation {

using protocol::AnswerLink;
using scheduler::GatherDecision;
using scheduler::PendingDispatch;

namespace {

// Times of runs with more rows are asked for each time.
constexpr uint32_t kTimesKept = 1 << 16;

}  // namespace

ExpertNode::ExpertNode(World& world, uint32_t index, std::string name, Incarnation incarnation,
                       std::vector<uint32_t> held)
    : world_(world),
      index_(index),
      name_(std::move(name)),
      incarnation_(incarnation),
      held_(std::move(held)),
      gather_({.layers = world.options.cluster.layers,
               .rows_max = std::max(world.options.cluster.gather_rows, uint32_t{1}),
               .window_max = to_nanos(world.options.cluster.gather_window_s)}),
      rows_(held_.size() + (world.options.cluster.shared_experts ? 1 : 0)),
      born_(world.now),
      idle_since_(world.now) {}

// --- Commands ---

void ExpertNode::command(Command command) {
  if (!alive_) return;
  commands_.push_back(command);
  if (!busy_) wake_at(world_.now);
}

void ExpertNode::open_link(uint32_t link) {
  command({.opens = true, .link = link});
}
void ExpertNode::close_link(uint32_t link) {
  command({.opens = false, .link = link});
}

void ExpertNode::handle(const Command& command) {
  const CostMeter meter(world_.costs.control, world_.measured());
  LinkState& link = world_.links[command.link];
  if (command.opens) {
    gather_.on_link_opened(LinkId{command.link}, world_.geometry.micro_batches);
  } else if (link.open_at_expert) {
    gather_.on_link_closed(LinkId{command.link});
  }
  link.open_at_expert = command.opens;
}

// --- Messages ---

void ExpertNode::arrive(uint32_t link, uint32_t slot) {
  if (!alive_) return;
  SlotState& state = world_.links[link].slots[slot];
  state.arrived = world_.receive(nic_, state);
  inbox_.push({.at = state.arrived, .link = link, .slot = slot});
  if (busy_) return;
  if (state.arrived <= world_.now && commands_.empty()) {
    turn();
  } else {
    wake_at(state.arrived);
  }
}

void ExpertNode::handle_dispatch(const Arrival& arrival) {
  LinkState& link = world_.links[arrival.link];
  if (!link.open_at_expert) return;
  SlotState& slot = link.slots[arrival.slot];
  owed_ += to_nanos(world_.options.overheads.expert_message);
  const CostMeter meter(world_.costs.gather_dispatch, world_.measured());
  VOLLEY_CHECK(link.answers.on_dispatch(arrival.slot, slot.header.sequence) ==
               AnswerLink::Dispatch::kCompute);
  slot.late = computed_;
  gather_.on_dispatch({.link = LinkId{arrival.link},
                       .slot = arrival.slot,
                       .layer = slot.header.layer,
                       .entry_count = slot.header.entry_count,
                       .arrived = world_.now});
  last_ = arrival;
  has_last_ = true;
}

// --- Turns ---

void ExpertNode::wake_at(Nanos when) {
  if (wake_ >= 0 && wake_ <= when) return;
  wake_ = when;
  world_.queue.push(when, Event::Kind::kExpertWakes, index_);
}

void ExpertNode::wake() {
  if (wake_ != world_.now) return;  // An earlier one has taken its place.
  wake_ = -1;
  if (alive_ && !busy_) turn();
}

void ExpertNode::turn() {
  while (true) {
    for (const Command& each : commands_) handle(each);
    commands_.clear();
    while (inbox_.ready(world_.now)) handle_dispatch(inbox_.pop());
    computed_ = false;
    if (begin_run()) return;
    // A run of empty dispatches takes no time: it was answered, and there may be more.
    if (!std::exchange(run_empty_, false)) break;
  }
  owed_ = 0;  // What is handled while waiting delays nothing.
  if (!inbox_.empty()) wake_at(inbox_.front().at);
}

bool ExpertNode::begin_run() {
  GatherDecision decision;
  {
    const CostMeter meter(world_.costs.gather_decide, world_.measured());
    decision = gather_.decide(world_.now);
  }
  switch (decision.kind) {
    case GatherDecision::Kind::kIdle:
      end_wait();
      waiting_ = Waiting::kIdle;
      return false;
    case GatherDecision::Kind::kWait:
      end_wait();
      waiting_ = Waiting::kWindow;
      wake_at(decision.wait_until);
      return false;
    case GatherDecision::Kind::kRun:
      end_wait();
      start(decision);
      return busy_;
  }
  return false;
}

void ExpertNode::start(const GatherDecision& run) {
  run_ = run.dispatches;
  busy_since_ = world_.now;
  const Nanos time = run_time(run);
  for (const PendingDispatch& dispatch : run_) {
    world_.links[dispatch.link.value].slots[dispatch.slot].run_began = world_.now;
  }
  busy_ = time > 0;
  if (busy_) {
    world_.queue.push(world_.now + time, Event::Kind::kExpertDone, index_);
    return;
  }
  run_empty_ = true;
  answer();
}

/// A run without entries has no kernel, only its messages.
Nanos ExpertNode::run_time(const GatherDecision& run) {
  const OverheadTimes& overheads = world_.options.overheads;
  run_rows_ = 0;
  std::ranges::fill(rows_, 0);
  for (const PendingDispatch& dispatch : run.dispatches) {
    run_rows_ += dispatch.entry_count;
    const auto rows = world_.links[dispatch.link.value].rows_of(dispatch.slot);
    for (size_t i = 0; i < rows.size(); ++i) rows_[i] += rows[i];
  }
  Nanos time = std::exchange(owed_, 0);
  time += to_nanos(overheads.expert_turn) +
          static_cast<Nanos>(run.dispatches.size()) * to_nanos(overheads.expert_message);
  if (run_rows_ == 0) return time;
  if (world_.counts()) {
    for (size_t i = 0; i < held_.size(); ++i) {
      world_.expert_rows[held_[i]] += static_cast<uint64_t>(rows_[i]);
    }
  }
  if (world_.options.cluster.shared_experts) {
    // Every row is one of top_k pairs, and the nodes share the rows of shared experts equally.
    rows_.back() = static_cast<double>(run_rows_) / world_.options.cluster.top_k;
  }
  if (held_.size() > 1 || run_rows_ >= kTimesKept) {
    return time + to_nanos(world_.times.expert_layer(rows_));
  }
  if (run_rows_ >= times_.size()) times_.resize(run_rows_ + 1, -1);
  if (times_[run_rows_] < 0) times_[run_rows_] = to_nanos(world_.times.expert_layer(rows_));
  return time + times_[run_rows_];
}

void ExpertNode::done() {
  if (!alive_) return;
  busy_ = false;
  computed_ = true;
  world_.report.expert.computing += world_.counted(busy_since_, world_.now);
  if (world_.keep_trace) {
    const PendingDispatch& first = run_.front();
    const protocol::MessageHeader& header = world_.links[first.link.value].slots[first.slot].header;
    world_.trace({.kind = TraceSpan::Kind::kFfn,
                  .expert = true,
                  .node = index_,
                  .micro_batch = header.micro_batch,
                  .layer = header.layer,
                  .rows = run_rows_,
                  .peers = static_cast<uint32_t>(run_.size()),
                  .begin = busy_since_,
                  .end = world_.now});
  }
  answer();
  turn();
}

void ExpertNode::answer() {
  const Nanos now = world_.now;
  idle_since_ = now;
  for (const PendingDispatch& dispatch : run_) {
    const uint32_t id = dispatch.link.value;
    LinkState& link = world_.links[id];
    if (!link.open_at_expert) continue;
    SlotState& slot = link.slots[dispatch.slot];
    slot.run_ended = now;
    protocol::MessageHeader& header = slot.header;
    header.kind = protocol::MessageKind::kAnswer;
    header.incarnation = incarnation_.value;
    header.row_count = world_.geometry.answer_rows(header.row_count, header.entry_count);
    header.entry_count = 0;
    header.row_bytes = world_.geometry.answer.row_bytes;
    header.times = protocol::AnswerTimes::make(now - busy_since_,
                                               slot.late ? -1 : busy_since_ - dispatch.arrived);
    link.answers.on_answered(dispatch.slot);
    const uint64_t bytes =
        sizeof(protocol::MessageHeader) + uint64_t{header.row_count} * header.row_bytes;
    if (world_.counts()) {
      world_.report.messages += 1;
      world_.report.answer_bytes += static_cast<double>(bytes);
    }
    world_.send(nic_, slot, bytes, true, id, dispatch.slot);
    if (world_.keep_trace) {
      world_.trace({.kind = TraceSpan::Kind::kSend,
                    .expert = true,
                    .node = index_,
                    .micro_batch = header.micro_batch,
                    .layer = header.layer,
                    .rows = header.row_count,
                    .peers = link.attention,
                    .begin = nic_.out_free - slot.duration,
                    .end = nic_.out_free});
    }
  }
  const CostMeter meter(world_.costs.gather_answered, world_.measured());
  gather_.on_answered(now, now - busy_since_);
}

/// Says what the node waited for since it looked last.
void ExpertNode::end_wait() {
  const Nanos begin = idle_since_, end = world_.now;
  idle_since_ = end;
  if (begin >= end) return;
  ExpertTime& spent = world_.report.expert;
  const bool has_last = std::exchange(has_last_, false);
  const double all = world_.counted(begin, end);
  if (all <= 0) return;
  if (waiting_ == Waiting::kWindow) {
    spent.gather_window += all;
    world_.trace({.kind = TraceSpan::Kind::kGatherWindow,
                  .expert = true,
                  .node = index_,
                  .begin = begin,
                  .end = end});
    return;
  }
  if (!has_last) {
    spent.no_work += all;
    return;
  }
  const LinkState& link = world_.links[last_.link];
  const SlotState& slot = link.slots[last_.slot];
  const auto part = [&](Nanos from, Nanos to) {
    return world_.counted(std::max(begin, from), std::min(end, to));
  };
  const double network = part(slot.posted, end);
  const double busy = part((*attention)[link.attention]->active_since(), slot.posted);
  spent.network += network;
  spent.attention += busy;
  spent.no_work += std::max(0.0, all - network - busy);
}

void ExpertNode::kill() {
  if (!alive_) return;
  finish();
  alive_ = false;
  died_ = world_.now;
}

void ExpertNode::finish() {
  if (!alive_) return;
  if (busy_) {
    world_.report.expert.computing += world_.counted(busy_since_, world_.now);
    return;
  }
  const double all = world_.counted(idle_since_, world_.now);
  if (waiting_ == Waiting::kWindow) {
    world_.report.expert.gather_window += all;
  } else {
    world_.report.expert.attention += all;
  }
}

void ExpertNode::count() const {
  const scheduler::GatherPolicy::Stats stats = gather_.stats();
  Report& report = world_.report;
  report.gather_runs += static_cast<double>(stats.runs - before_.runs);
  report.gather_dispatches += static_cast<double>(stats.dispatches - before_.dispatches);
  report.mergeable_runs += static_cast<double>(stats.mergeable_runs - before_.mergeable_runs);
  report.merged_runs += static_cast<double>(stats.merged_runs - before_.merged_runs);
}

}  // namespace volley::simulation
