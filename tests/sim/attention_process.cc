#include "sim/attention_process.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "volley/base/check.h"

namespace volley::sim {

using scheduler::AnswerRef;
using scheduler::Chunk;
using scheduler::Work;

namespace {

constexpr uint8_t kDtype = 1;

scheduler::AttentionCoreOptions core_options(const ProcessOptions& options,
                                             const scheduler::SchedulerOptions& scheduler,
                                             uint64_t incarnation) {
  return {.scheduler = scheduler,
          .geometry = options.geometry,
          .layers = options.shape.layers,
          .experts = options.shape.experts,
          .top_k = options.shape.top_k,
          .incarnation = Incarnation{incarnation},
          .dtype = kDtype,
          .link_timeout = options.link_timeout};
}

}  // namespace

AttentionProcess::AttentionProcess(World& world, Network& network, Checkers& checkers,
                                   const ProcessOptions& options,
                                   const scheduler::SchedulerOptions& scheduler, std::string name,
                                   uint64_t incarnation)
    : Process(world, network, checkers, options, std::move(name), incarnation),
      scheduler_options_(scheduler),
      core_(core_options(options, scheduler, incarnation)),
      kv_(checkers.sequences, checkers.violations),
      rows_(scheduler.micro_batches),
      keys_(size_t{options.shape.layers} * scheduler.block_count * scheduler.block_tokens) {}

void AttentionProcess::set_map(std::shared_ptr<const protocol::ExpertMap> map) {
  mailbox_.push_back([this, map = std::move(map)] { core_.set_map(map); });
  wake();
}

void AttentionProcess::submit(scheduler::SequenceRequest request) {
  mailbox_.push_back([this, request = std::move(request)] {
    if (!core_.ready().ok() || !core_.scheduler().submit(request, world_.now()).ok()) {
      ++rejected_;
      return;
    }
    checkers_.sequences.accepted(incarnation(), request);
    world_.note(20, request.id.value);
  });
  wake();
}

void AttentionProcess::cancel(uint64_t sequence) {
  mailbox_.push_back([this, sequence] {
    core_.scheduler().cancel(SequenceId{sequence}, Status(StatusCode::kCancelled, "by the caller"));
    if (options_.bug == Bug::kLeakSequence) core_.scheduler().take_outputs(outputs_);
  });
  wake();
}

void AttentionProcess::preempt(uint64_t sequence) {
  mailbox_.push_back([this, sequence] { core_.scheduler().preempt(SequenceId{sequence}); });
  wake();
}

bool AttentionProcess::linked_to(const std::string& node, uint64_t incarnation) const {
  return std::any_of(links_.begin(), links_.end(), [&](const auto& item) {
    return item.second.node == node && item.second.incarnation == incarnation;
  });
}

std::vector<uint32_t> AttentionProcess::links() const {
  std::vector<uint32_t> ids;
  for (const auto& [id, link] : links_) ids.push_back(id);
  return ids;
}

bool AttentionProcess::at_rest() {
  if (!core_.scheduler().idle() || !mailbox_.empty()) return false;
  for (uint32_t index = 0; index < scheduler_options_.micro_batches; ++index) {
    if (std::strcmp(core_.view(index).state, "idle") != 0) return false;
  }
  return true;
}

void AttentionProcess::turn() {
  while (!mailbox_.empty()) {
    mailbox_.front()();
    mailbox_.pop_front();
  }
  while (!inbox_.empty()) {
    const Arrival arrival = inbox_.front();
    inbox_.pop_front();
    take(arrival);
    post_dispatches();
  }
  Work work;
  while (core_.next_work(work)) {
    combine_rows(work);
    post_dispatches();
    if (work.stage == Work::Stage::kPack) continue;
    if (work.stage == Work::Stage::kAttention && work.layer == 0) {
      take_outputs();
      kv_.step_began(work.micro_batch, *work.plan);
      checkers_.limits.step(work.plan->row_count, scheduler_options_);
    }
    compute(options_.compute, [this, work] {
      if (work.stage == Work::Stage::kHead) {
        finish_head(work);
      } else {
        finish_attention(work);
      }
      post_dispatches();
      take_outputs();
    });
    break;
  }
  take_outputs();
  check();
}

void AttentionProcess::tick() {
  for (const auto& [id, link] : links_) core_.heard(LinkId{id}, heard(id));
  const auto view = core_.tick(world_.now());
  const std::vector<LinkId> silent(view.begin(), view.end());
  for (const LinkId link : silent) {
    world_.note(21, link.value);
    close(link.value);
    post_dispatches();
  }
  take_outputs();
  wake();
}

void AttentionProcess::take(const Arrival& arrival) {
  if (arrival.kind == Arrival::kOpened) {
    connecting_.erase(arrival.origin);
    if (!network_.open_at(arrival.link, *this)) return;
    opened(arrival.link);
    links_[arrival.link] = {
        .node = name_of(arrival.origin),
        .incarnation = arrival.origin,
        .posted = std::vector<protocol::MessageHeader>(options_.geometry.slot_count())};
    core_.link_opened(LinkId{arrival.link}, links_[arrival.link].node, Incarnation{arrival.origin});
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

void AttentionProcess::take_message(Link& link, const Arrival& arrival) {
  pulse_from(arrival.link);
  protocol::MessageHeader header = arrival.header;
  const protocol::MessageHeader& posted = link.posted[arrival.slot];
  if (options_.bug == Bug::kAcceptStaleAnswer && header.sequence != posted.sequence) {
    header.sequence = posted.sequence;
    header.layer = posted.layer;
    header.fragment = posted.fragment;
    header.fragment_count = posted.fragment_count;
    header.row_count = posted.entry_count;
  }
  const Status valid =
      protocol::validate_header(header, {.kind = protocol::MessageKind::kAnswer,
                                         .incarnation = link.incarnation,
                                         .link = arrival.link,
                                         .slot = arrival.slot,
                                         .layers = options_.shape.layers,
                                         .experts = options_.shape.experts,
                                         .dtype = kDtype,
                                         .layout = options_.geometry.answer,
                                         .micro_batches = options_.geometry.micro_batches});
  if (!valid.ok()) {
    close(arrival.link);
    return;
  }
  checkers_.incarnations.accepted(arrival.link, link.incarnation, arrival.origin_link,
                                  arrival.origin);
  checkers_.links.answered(arrival.link, arrival.slot, header.sequence, arrival.header.sequence);
  if (!core_.on_message(LinkId{arrival.link}, arrival.slot, header).ok()) close(arrival.link);
}

void AttentionProcess::close(uint32_t link) {
  network_.close(link, *this);
  links_.erase(link);
  forget(link);
  checkers_.links.closed(link);
  core_.link_closed(LinkId{link});
}

void AttentionProcess::post_dispatches() {
  for (const scheduler::OutgoingDispatch& out : core_.take_dispatches()) {
    const uint32_t id = out.link.value;
    std::byte* slot = network_.send_slot(id, *this, out.slot);
    const protocol::SlotLayout& layout = options_.geometry.dispatch;
    protocol::MessageHeader& header = protocol::header_of(slot);
    header = out.header;
    header.link = id;
    std::copy(out.entries.begin(), out.entries.end(),
              protocol::entries_of(slot, layout, header.entry_count).begin());
    const std::vector<uint64_t>& rows = rows_[header.micro_batch];
    for (uint32_t row = 0; row < header.row_count; ++row) {
      std::memcpy(protocol::row_of(slot, layout, row), &rows[out.rows[row]], sizeof(uint64_t));
    }
    links_.at(id).posted[out.slot] = header;
    checkers_.links.posted(id, out.slot, header.sequence);
    network_.post(id, *this, out.slot);
    if (header.row_count > 0 && planted(Bug::kReuseSlotEarly, 0.02)) {
      *protocol::row_of(slot, layout, 0) ^= std::byte{1};
    }
  }
}

void AttentionProcess::take_outputs() {
  core_.scheduler().take_outputs(outputs_);
  for (const scheduler::SequenceOutput& output : outputs_) {
    world_.note(22, output.id.value, static_cast<uint64_t>(output.token));
    if (planted(Bug::kDropOutput, 0.02)) continue;
    checkers_.sequences.output(output);
  }
}

void AttentionProcess::combine_rows(const Work& work) {
  if (work.combine_begin == work.combine_end) return;
  std::vector<uint64_t>& rows = rows_[work.micro_batch];
  const uint32_t top_k = options_.shape.top_k;
  for (uint32_t row = work.combine_begin; row < work.combine_end; ++row) {
    const auto refs = work.answers.subspan(size_t{row - work.combine_begin} * top_k, top_k);
    std::vector<AnswerRef> order(refs.begin(), refs.end());
    if (options_.bug == Bug::kCombineByArrival) {
      std::sort(order.begin(), order.end(), [](const AnswerRef& a, const AnswerRef& b) {
        return std::tie(a.link, a.slot, a.index) < std::tie(b.link, b.slot, b.index);
      });
    }
    for (const AnswerRef& ref : order) {
      if (ref.index == AnswerRef::kNone) continue;
      uint64_t answer = 0;
      std::memcpy(&answer,
                  protocol::row_of(network_.recv_slot(ref.link.value, *this, ref.slot),
                                   options_.geometry.answer, ref.index),
                  sizeof answer);
      rows[row] = combine(rows[row], answer);
    }
  }
}

uint64_t& AttentionProcess::key(uint32_t layer, const Chunk& chunk, uint32_t position) {
  const uint32_t block_tokens = scheduler_options_.block_tokens;
  uint32_t block = chunk.blocks[position / block_tokens];
  if (options_.bug == Bug::kShareBlock) block /= 2;
  return keys_[(size_t{layer} * scheduler_options_.block_count + block) * block_tokens +
               position % block_tokens];
}

void AttentionProcess::finish_attention(const Work& work) {
  std::vector<uint64_t>& rows = rows_[work.micro_batch];
  rows.resize(work.plan->row_count);
  std::vector<uint32_t> chosen;
  std::vector<uint64_t> past;
  for (const Chunk& chunk : work.plan->chunks) {
    for (uint32_t i = 0; i < chunk.row_count; ++i) {
      uint64_t& row = rows[chunk.first_row + i];
      const uint32_t position = chunk.start_position + i;
      if (work.layer == 0) row = embed(chunk.tokens[i], position);
      key(work.layer, chunk, position) = row;
      past.clear();
      for (uint32_t each = 0; each <= position; ++each)
        past.push_back(key(work.layer, chunk, each));
      row = attend(work.layer, past);
      choose_experts(options_.shape, work.layer, row, chosen);
    }
  }
  if (world_.random().chance(options_.bad_numbers)) {
    const uint64_t row = world_.random().below(work.plan->row_count);
    std::fill_n(chosen.begin() + static_cast<std::ptrdiff_t>(row * options_.shape.top_k),
                options_.shape.top_k, UINT32_MAX);
  }
  core_.route(work.micro_batch, chosen);
}

void AttentionProcess::finish_head(const Work& work) {
  std::vector<scheduler::BatchScheduler::Sampled> sampled;
  for (const Chunk& chunk : work.plan->chunks) {
    if (!chunk.emits) continue;
    const uint64_t row = rows_[work.micro_batch][chunk.first_row + chunk.row_count - 1];
    sampled.push_back({.token = sample(row), .logprob = 0, .logits_digest = row});
  }
  kv_.step_ended(work.micro_batch);
  core_.finish_step(work.micro_batch, sampled);
}

void AttentionProcess::check() {
  for (uint32_t index = 0; index < scheduler_options_.micro_batches; ++index) {
    if (std::strcmp(core_.view(index).state, "idle") == 0) kv_.step_ended(index);
  }
  const auto stats = core_.scheduler().stats();
  kv_.stats(stats, core_.scheduler().idle());
  checkers_.limits.scheduler(stats, scheduler_options_);
}

std::string AttentionProcess::describe() const {
  std::string text = fmt::format("{}: {}", name(), message_of(core_.ready()));
  for (uint32_t index = 0; index < scheduler_options_.micro_batches; ++index) {
    const auto view = core_.view(index);
    text += fmt::format("; {} layer {} rows {} missing {}", view.state, view.layer, view.rows,
                        view.answers_missing);
  }
  return text;
}

}  // namespace volley::sim
