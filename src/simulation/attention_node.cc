#include "attention_node.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "volley/base/check.h"
#include "volley/cache/block_allocator.h"

namespace volley::simulation {

using scheduler::Work;

namespace {

constexpr uint64_t kSlotBits = 24;  // Of a sequence's id: the place of its Request.

scheduler::AttentionCoreOptions core_options(const World& world, Incarnation incarnation) {
  const ClusterOptions& cluster = world.options.cluster;
  const uint32_t longest = world.options.longest_sequence();
  const uint32_t blocks = cache::blocks_for(longest, cluster.block_tokens);
  return {.scheduler = {.micro_batches = cluster.micro_batches,
                        .tokens_per_step_max = cluster.tokens_per_step,
                        .sequences_max = cluster.sequences,
                        .waiting_max = cluster.waiting,
                        .block_count =
                            cluster.kv_blocks > 0 ? cluster.kv_blocks : blocks * cluster.sequences,
                        .block_tokens = cluster.block_tokens,
                        .sequence_tokens_max = longest},
          .geometry = world.geometry,
          .layers = cluster.layers,
          .experts = cluster.experts,
          .top_k = cluster.top_k,
          .incarnation = incarnation,
          .dtype = static_cast<uint8_t>(protocol::RowDType::kBf16),
          // Deaths are noticed by the cluster, after SimulationOptions::detection_s.
          .link_timeout = std::numeric_limits<Nanos>::max() / 4};
}

}  // namespace

AttentionNode::AttentionNode(World& world, uint32_t index, Incarnation incarnation)
    : world_(world),
      index_(index),
      name_(fmt::format("attention-{}", index)),
      core_(core_options(world, incarnation)),
      controller_({.micro_batches_max = world.options.cluster.micro_batches,
                   .rows_max = world.options.cluster.tokens_per_step,
                   .layers = world.options.cluster.layers}),
      steps_(world.options.cluster.micro_batches),
      born_(world.now),
      idle_since_(world.now),
      active_since_(std::numeric_limits<Nanos>::max()) {
  if (world.options.cluster.adaptive_micro_batches) {
    core_.scheduler().set_active_micro_batches(controller_.decision().micro_batches);
  }
}

// --- Commands ---

void AttentionNode::command(Command command) {
  if (!alive_) return;
  commands_.push_back(std::move(command));
  if (!busy_) wake_at(world_.now);
}

void AttentionNode::submit(uint64_t id) {
  ++in_flight_;
  command({.kind = Command::Kind::kSubmit, .id = id});
}
void AttentionNode::open_link(uint32_t link, const std::string& node, Incarnation incarnation) {
  command({.kind = Command::Kind::kOpen, .link = link, .node = node, .incarnation = incarnation});
}
void AttentionNode::close_link(uint32_t link) {
  command({.kind = Command::Kind::kClose, .link = link});
}
void AttentionNode::set_map(std::shared_ptr<const protocol::ExpertMap> map) {
  command({.kind = Command::Kind::kMap, .map = std::move(map)});
}

void AttentionNode::handle(Command& command) {
  switch (command.kind) {
    case Command::Kind::kSubmit:
      handle_submit(command.id);
      return;
    case Command::Kind::kOpen: {
      const CostMeter meter(world_.costs.control, world_.measured());
      world_.links[command.link].open_at_attention = true;
      core_.link_opened(LinkId{command.link}, command.node, command.incarnation);
      return;
    }
    case Command::Kind::kClose: {
      const CostMeter meter(world_.costs.control, world_.measured());
      world_.links[command.link].open_at_attention = false;
      core_.link_closed(LinkId{command.link});
      closed_a_link_ = true;
      return;
    }
    case Command::Kind::kMap: {
      const CostMeter meter(world_.costs.control, world_.measured());
      core_.set_map(std::move(command.map));
      return;
    }
  }
}

void AttentionNode::handle_submit(uint64_t id) {
  Request& request = world_.requests[id & ((1u << kSlotBits) - 1)];
  const bool prefilled = world_.options.workload.prefilled;
  request.hidden_context = prefilled ? request.input - 1 : 0;
  const bool was_idle = core_.scheduler().idle();
  const bool accepted =
      core_.ready().ok() &&
      core_.scheduler()
          .submit({.id = SequenceId{id},
                   .tokens = std::vector<int32_t>(prefilled ? 1 : request.input, 1),
                   .max_new_tokens = request.output,
                   .stop_tokens = {},
                   .deadline = 0},
                  world_.now)
          .ok();
  if (!accepted) {
    --in_flight_;
    ended.push_back({.id = id, .ok = false, .rejected = true});
    return;
  }
  request.accepted = true;
  ++world_.report.accepted;
  if (was_idle) active_since_ = world_.now;
}

// --- Messages ---

void AttentionNode::arrive(uint32_t link, uint32_t slot) {
  if (!alive_) return;
  const Nanos at = world_.receive(nic_, world_.links[link].slots[slot]);
  inbox_.push({.at = at, .link = link, .slot = slot});
  if (busy_) return;
  if (at <= world_.now && commands_.empty()) {
    turn();
  } else {
    wake_at(at);
  }
}

void AttentionNode::handle_answer(const Arrival& arrival) {
  LinkState& link = world_.links[arrival.link];
  if (!link.open_at_attention) return;
  const protocol::MessageHeader& header = link.slots[arrival.slot].header;
  StepState& step = steps_[header.micro_batch];
  step.link = arrival.link;
  step.slot = arrival.slot;
  note_answer(step, header);
  owed_ += to_nanos(world_.options.overheads.attention_message);
  const CostMeter meter(world_.costs.core_message, world_.measured());
  VOLLEY_CHECK(core_.on_message(LinkId{arrival.link}, arrival.slot, header).ok());
}

/// As the engine does.
void AttentionNode::note_answer(StepState& step, const protocol::MessageHeader& header) {
  const protocol::AnswerTimes& answer = header.times;
  step.expert = std::max(step.expert, Nanos{answer.compute_ns});
  const bool queue_known = answer.queue_ns != protocol::AnswerTimes::kUnknown;
  const Nanos away =
      world_.now - step.posted - answer.compute_ns - (queue_known ? answer.queue_ns : 0);
  const Nanos one_way = std::max<Nanos>(away / 2, 0);
  const bool exact = queue_known && !worked_;
  (exact ? step.has_exact : step.has_bound) = true;
  Nanos& longest = exact ? step.exact : step.bound;
  longest = std::max(longest, one_way);
}

void AttentionNode::end_fragment(StepState& step) {
  step.expert_sum += std::exchange(step.expert, 0);
  if (std::exchange(step.has_exact, false)) {
    step.exact_sum += std::exchange(step.exact, 0);
    ++step.exact_count;
  }
  if (std::exchange(step.has_bound, false)) {
    step.bound_sum += std::exchange(step.bound, 0);
    ++step.bound_count;
  }
}

void AttentionNode::learn(const StepState& step) {
  if (!world_.options.cluster.adaptive_micro_batches || step.decode_rows == 0) return;
  const Nanos now = world_.now;
  const uint32_t layers = world_.options.cluster.layers;
  controller_.on_attention(step.decode_rows, step.computed / layers, now);
  controller_.on_expert(step.decode_rows, step.expert_sum / layers, now);
  const bool exact = step.exact_count > 0;
  const Nanos sum = exact ? step.exact_sum : step.bound_sum;
  const uint32_t count = exact ? step.exact_count : step.bound_count;
  if (count > 0) controller_.on_transfer(step.decode_rows, sum / count, exact, now);
  core_.scheduler().set_active_micro_batches(
      controller_.decide(core_.scheduler().stats().running, now));
}

void AttentionNode::post() {
  std::span<const scheduler::OutgoingDispatch> dispatches;
  {
    const CostMeter meter(world_.costs.core_route, world_.measured());
    dispatches = core_.take_dispatches();
  }
  const Nanos each = to_nanos(world_.options.overheads.attention_message);
  for (const scheduler::OutgoingDispatch& dispatch : dispatches) {
    LinkState& link = world_.links[dispatch.link.value];
    SlotState& slot = link.slots[dispatch.slot];
    slot.header = dispatch.header;
    slot.header.link = dispatch.link.value;
    slot.posted = world_.now;
    const auto rows = link.rows_of(dispatch.slot);
    if (rows.size() == 1) {
      rows[0] = dispatch.header.entry_count;
    } else {
      std::ranges::fill(rows, 0);
      const std::vector<uint32_t>& place = world_.place_of(link.expert);
      for (const protocol::Entry& entry : dispatch.entries) ++rows[place[entry.expert]];
    }
    const uint64_t bytes = sizeof(protocol::MessageHeader) +
                           world_.geometry.dispatch.entries_bytes(dispatch.header.entry_count) +
                           uint64_t{dispatch.header.row_count} * dispatch.header.row_bytes;
    if (world_.counts()) {
      world_.report.messages += 1;
      world_.report.dispatch_bytes += static_cast<double>(bytes);
    }
    world_.send(nic_, slot, bytes, false, dispatch.link.value, dispatch.slot);
    if (world_.keep_trace) {
      world_.trace({.kind = TraceSpan::Kind::kSend,
                    .expert = false,
                    .node = index_,
                    .micro_batch = dispatch.header.micro_batch,
                    .layer = dispatch.header.layer,
                    .rows = dispatch.header.row_count,
                    .peers = link.expert,
                    .begin = nic_.out_free - slot.duration,
                    .end = nic_.out_free});
    }
    owed_ += each;
    steps_[dispatch.header.micro_batch].posted = world_.now;
  }
}

// --- Turns ---

void AttentionNode::wake_at(Nanos when) {
  if (wake_ >= 0 && wake_ <= when) return;
  wake_ = when;
  world_.queue.push(when, Event::Kind::kAttentionWakes, index_);
}

void AttentionNode::wake() {
  if (wake_ != world_.now) return;  // An earlier one has taken its place.
  wake_ = -1;
  if (alive_ && !busy_) turn();
}

void AttentionNode::turn() {
  batch_.swap(commands_);
  for (Command& each : batch_) handle(each);
  batch_.clear();
  while (inbox_.ready(world_.now)) handle_answer(inbox_.pop());
  worked_ = false;
  if (std::exchange(closed_a_link_, false)) core_.tick(world_.now);
  post();
  const bool works = begin_work();
  deliver();
  if (!works && !inbox_.empty()) wake_at(inbox_.front().at);
}

bool AttentionNode::begin_work() {
  while (true) {
    {
      const CostMeter meter(world_.costs.core_next_work, world_.measured());
      if (!core_.next_work(work_)) break;
    }
    end_wait(work_);
    StepState& step = steps_[work_.micro_batch];
    if (work_.stage == Work::Stage::kAttention && work_.layer == 0) begin_step(step, *work_.plan);
    if (work_.combine_begin < work_.combine_end) end_fragment(step);
    if (work_.stage == Work::Stage::kPack) {
      post();
      idle_since_ = world_.now;
      continue;
    }
    const Nanos stage = work_.stage == Work::Stage::kHead ? step.head : step.layer;
    const Nanos time =
        stage + std::exchange(owed_, 0) + to_nanos(world_.options.overheads.attention_turn);
    step.computed += time;
    busy_ = true;
    busy_since_ = world_.now;
    world_.queue.push(world_.now + time, Event::Kind::kAttentionDone, index_);
    return true;
  }
  owed_ = 0;  // What is handled while waiting delays nothing.
  return false;
}

/// The step's times are the same in each layer.
void AttentionNode::begin_step(StepState& step, const scheduler::StepPlan& plan) {
  perf::StepLoad load{.rows = static_cast<double>(plan.row_count)};
  double context = 0;
  for (const scheduler::Chunk& chunk : plan.chunks) {
    const Request& request = world_.requests[chunk.sequence.value & ((1u << kSlotBits) - 1)];
    const double first = static_cast<double>(chunk.start_position) + request.hidden_context + 1;
    const double rows = chunk.row_count;
    context += rows * (first + (rows - 1) / 2);
    load.emitting_rows += chunk.emits ? 1 : 0;
  }
  load.context_tokens = context;
  step = {};
  step.rows = plan.row_count;
  step.decode_rows = plan.row_count == plan.chunks.size() ? plan.row_count : 0;
  step.layer = to_nanos(world_.times.attention_layer(load));
  step.head = to_nanos(world_.times.attention_step(load));
  if (world_.counts()) {
    world_.batch_rows += plan.row_count;
    world_.active_micro_batches += core_.scheduler().active_micro_batches();
    ++world_.steps;
  }
}

void AttentionNode::done() {
  if (!alive_) return;
  busy_ = false;
  worked_ = true;
  const Nanos now = world_.now;
  AttentionTime& spent = world_.report.attention;
  spent.computing += world_.counted(busy_since_, now);
  idle_since_ = now;
  const bool head = work_.stage == Work::Stage::kHead;
  StepState& step = steps_[work_.micro_batch];
  world_.trace({.kind = head ? TraceSpan::Kind::kHead : TraceSpan::Kind::kAttention,
                .expert = false,
                .node = index_,
                .micro_batch = static_cast<uint16_t>(work_.micro_batch),
                .layer = work_.layer,
                .rows = step.rows,
                .peers = 0,
                .begin = busy_since_,
                .end = now});
  if (head) {
    sampled_.clear();
    for (const scheduler::Chunk& chunk : work_.plan->chunks) {
      if (chunk.emits) sampled_.push_back({.token = 1});
    }
    {
      const CostMeter meter(world_.costs.core_finish, world_.measured());
      core_.finish_step(work_.micro_batch, sampled_);
    }
    learn(step);
  } else {
    const auto chosen = world_.router->choose(work_.layer, step.rows);
    const CostMeter meter(world_.costs.core_route, world_.measured());
    core_.route(work_.micro_batch, chosen);
    world_.report.layers_computed += 1;
  }
  post();
  deliver();
  turn();
}

/// Says what the node waited for, by the way of the message that ended the wait.
void AttentionNode::end_wait(const Work& work) {
  const Nanos begin = idle_since_, end = world_.now;
  if (begin >= end) return;
  AttentionTime& spent = world_.report.attention;
  const double all = world_.counted(begin, end);
  if (all <= 0) return;
  if (work.combine_begin == work.combine_end) {
    spent.no_work += all;
    return;
  }
  const StepState& step = steps_[work.micro_batch];
  const SlotState& slot = world_.links[step.link].slots[step.slot];
  const auto part = [&](Nanos from, Nanos to) {
    return world_.counted(std::max(begin, from), std::min(end, to));
  };
  const double queue = part(slot.arrived, slot.run_began);
  const double compute = part(slot.run_began, slot.run_ended);
  spent.expert_queue += queue;
  spent.expert_compute += compute;
  spent.network += std::max(0.0, all - queue - compute);
}

void AttentionNode::deliver() {
  {
    const CostMeter meter(world_.costs.core_finish, world_.measured());
    core_.scheduler().take_outputs(outputs_);
  }
  const Nanos now = world_.now;
  Report& report = world_.report;
  for (const scheduler::SequenceOutput& output : outputs_) {
    Request& request = world_.requests[output.id.value & ((1u << kSlotBits) - 1)];
    if (output.token >= 0) {
      ++request.tokens;
      if (world_.counts()) {
        report.tokens += 1;
        if (request.tokens == 1) {
          report.ttft.add(to_seconds(now - request.arrived));
        } else {
          report.inter_token.add(to_seconds(now - request.last_token));
        }
      }
      if (request.tokens == 1) request.first_token = now;
      request.last_token = now;
    }
    if (!output.ended()) continue;
    const bool ok = output.status.ok();
    if (ok && request.tokens > 1 && world_.counts()) {
      report.tpot.add(to_seconds(now - request.first_token) / (request.tokens - 1));
    }
    --in_flight_;
    ended.push_back({.id = output.id.value, .ok = ok});
  }
  if (!outputs_.empty() && core_.scheduler().idle()) {
    active_since_ = std::numeric_limits<Nanos>::max();
  }
  if (!ended.empty()) world_.nodes_with_ended.push_back(index_);
}

void AttentionNode::kill() {
  if (!alive_) return;
  if (busy_) {
    world_.report.attention.computing += world_.counted(busy_since_, world_.now);
  } else {
    finish();
  }
  alive_ = false;
  died_ = world_.now;
}

void AttentionNode::finish() {
  if (!alive_) return;
  const Nanos end = world_.now;
  AttentionTime& spent = world_.report.attention;
  if (busy_) {
    spent.computing += world_.counted(busy_since_, end);
  } else if (core_.scheduler().idle()) {
    spent.no_work += world_.counted(idle_since_, end);
  } else {
    spent.network += world_.counted(idle_since_, end);
  }
}

}  // namespace volley::simulation
