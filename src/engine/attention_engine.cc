#include "volley/engine/attention_engine.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <variant>

#include "attention_step.h"
#include "engine_loop.h"
#include "expert_links.h"
#include "modelled_attention.h"
#include "progress.h"
#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/base/mailbox.h"
#include "volley/base/thread_pool.h"
#include "volley/cache/block_allocator.h"
#include "volley/engine/dispatch_rows.h"
#include "volley/scheduler/attention_core.h"
#include "volley/scheduler/micro_batch_controller.h"

namespace volley::engine {
namespace {

using scheduler::AttentionCore;
using scheduler::Work;

// Commands that no sequence accounts for: updates, stop, test hooks.
constexpr size_t kExtraCommands = 4096;
constexpr size_t kEventsPerPoll = 64;
// How long the engine thread sleeps when nothing is due; peers, commands and deadlines wake it
// earlier.
constexpr Nanos kIdleWait = 100 * kMillisecond;
constexpr Nanos kStatusInterval = 20 * kMillisecond;

struct SubmitCommand {
  SequenceId id;
  GenerationRequest request;
  OutputSink* sink;
};
struct CancelCommand {
  SequenceId id;
};
struct PreemptCommand {
  SequenceId id;
};
struct StopCommand {
  Nanos deadline;
};
using Command =
    std::variant<SubmitCommand, CancelCommand, PreemptCommand, ClusterUpdate, StopCommand>;

scheduler::AttentionCoreOptions core_options(const AttentionEngineOptions& options,
                                             const model::ModelSpec& spec) {
  return {.scheduler = {.micro_batches = options.micro_batches,
                        .tokens_per_step_max = options.tokens_per_step_max,
                        .sequences_max = options.sequences_max,
                        .waiting_max = options.waiting_max,
                        .block_count = options.kv_blocks,
                        .block_tokens = kernels::kKvBlockTokens,
                        .sequence_tokens_max = options.sequence_tokens_max},
          .geometry = options.geometry,
          .layers = spec.layer_count(),
          .experts = spec.layers.front().moe.experts,
          .top_k = spec.layers.front().moe.top_k,
          .incarnation = options.incarnation,
          .dtype = static_cast<uint8_t>(dispatch_dtype(options.dtype, options.fp8_dispatch)),
          .link_timeout = options.link_timeout};
}

/// Checks the options against each other and the model, and fills in the default of kv_blocks.
Result<AttentionEngineOptions> checked(const AttentionEngineOptions& requested,
                                       const model::ModelSpec& spec) {
  AttentionEngineOptions options = requested;
  if (options.micro_batches < 1 || options.micro_batches > protocol::kMicroBatchesMax) {
    return invalid_argument("micro_batches is {}; it must be in [1, {}]", options.micro_batches,
                            protocol::kMicroBatchesMax);
  }
  if (options.geometry.micro_batches != options.micro_batches) {
    return invalid_argument("micro_batches is {}, the link geometry has {}", options.micro_batches,
                            options.geometry.micro_batches);
  }
  VOLLEY_RETURN_IF_ERROR(
      check_row_bytes(options.geometry, spec.hidden, options.dtype, options.fp8_dispatch));
  if (options.tokens_per_step_max == 0 || options.sequences_max == 0 || options.threads == 0) {
    return invalid_argument(
        "tokens_per_step_max ({}), sequences_max ({}) and threads ({}) must not be 0",
        options.tokens_per_step_max, options.sequences_max, options.threads);
  }
  if (!options.cores.empty() && options.cores.size() < options.threads) {
    return invalid_argument("{} threads cannot be pinned to {} cores", options.threads,
                            options.cores.size());
  }
  if (options.sequence_tokens_max == 0 || options.sequence_tokens_max > spec.max_positions) {
    return invalid_argument("sequence_tokens_max is {}; the model has {} positions",
                            options.sequence_tokens_max, spec.max_positions);
  }
  for (const model::LayerSpec& layer : spec.layers) {
    const model::MoeSpec& first = spec.layers.front().moe;
    if (layer.moe.experts != first.experts || layer.moe.top_k != first.top_k) {
      return failed_precondition("layers with {}/{} and {}/{} experts cannot be mixed", first.top_k,
                                 first.experts, layer.moe.top_k, layer.moe.experts);
    }
  }
  const uint32_t blocks_per_sequence =
      cache::blocks_for(options.sequence_tokens_max, kernels::kKvBlockTokens);
  if (options.kv_blocks == 0) {
    const uint64_t blocks = uint64_t{blocks_per_sequence} * std::max(1u, options.sequences_max / 4);
    if (blocks > UINT32_MAX) {
      return invalid_argument(
          "{} sequences of {} tokens would by default get {} KV blocks; set kv_blocks",
          options.sequences_max, options.sequence_tokens_max, blocks);
    }
    options.kv_blocks = static_cast<uint32_t>(blocks);
  }
  if (options.kv_blocks < blocks_per_sequence) {
    return invalid_argument("kv_blocks is {}; one sequence of sequence_tokens_max {} needs {}",
                            options.kv_blocks, options.sequence_tokens_max, blocks_per_sequence);
  }
  return options;
}

}  // namespace

struct AttentionEngine::Impl final : EngineLoop {
  Impl(const AttentionEngineOptions& opts, const model::ModelSpec& spec,
       std::unique_ptr<transport::Fabric> link_fabric)
      : options(opts),
        vocab(spec.vocab),
        layers(spec.layer_count()),
        top_k(spec.layers.front().moe.top_k),
        geometry(opts.geometry),
        pool_owner(opts.pool ? opts.pool : std::make_shared<ThreadPool>(opts.threads, opts.cores)),
        pool(*pool_owner),
        fabric(std::move(link_fabric)),
        core(core_options(opts, spec)),
        links(*fabric, opts.name),
        profile(opts.trace_capacity),
        scratch(pool.thread_count()),
        controller({.micro_batches_max = opts.micro_batches,
                    .rows_max = opts.tokens_per_step_max,
                    .layers = spec.layer_count(),
                    .overlap = !opts.shares_cores_with_experts}),
        micro_batch_times(opts.micro_batches),
        // Each accepted sequence may post its submission and one cancel.
        commands(2 * (size_t{opts.waiting_max} + opts.sequences_max) + kExtraCommands) {
    if (options.adaptive_micro_batches) {
      core.scheduler().set_active_micro_batches(controller.decision().micro_batches);
    }
    zero_row.resize(geometry.answer.row_bytes);
    answer_rows.reserve(size_t{opts.tokens_per_step_max} * top_k);
    // At most one token for each row of a step.
    sampled.reserve(opts.tokens_per_step_max);
    outputs.reserve(opts.sequences_max);  // The scheduler swaps it with its own.
    for (kernels::SampleScratch& one : scratch) one.reserve(vocab);
  }

  struct Live {
    OutputSink* sink;
    kernels::SamplingParams sampling;
  };
  /// The times of one way that were seen, with or without some waiting in them.
  struct TransferTimes {
    Nanos longest = 0;  // Of the fragment's answers.
    bool seen = false;
    Nanos sum = 0;  // Of the step's fragments.
    uint32_t fragments = 0;

    void note(Nanos one_way) {
      longest = std::max(longest, one_way);
      seen = true;
    }
    void end_fragment() {
      if (seen) {
        sum += longest;
        ++fragments;
      }
      longest = 0;
      seen = false;
    }
  };
  /// What is measured of a micro-batch's step.
  struct MicroBatchTimes {
    Nanos computed = 0;    // This thread's time for the step so far.
    Nanos posted = 0;      // The fragment's last dispatch.
    Nanos expert = 0;      // The longest of the fragment's answers.
    Nanos expert_sum = 0;  // Of the step's fragments.
    TransferTimes exact, bound;
  };

  const AttentionEngineOptions options;
  const uint32_t vocab, layers, top_k;
  const protocol::LinkGeometry geometry;
  const std::shared_ptr<ThreadPool> pool_owner;
  ThreadPool& pool;
  std::unique_ptr<transport::Fabric> fabric;

  // Owned by the engine thread.
  AttentionCore core;
  ExpertLinks links;
  Profile profile;
  std::unique_ptr<AttentionStage> stage;
  std::unordered_map<SequenceId, Live> live;
  std::vector<scheduler::SequenceOutput> outputs;
  std::vector<scheduler::BatchScheduler::Sampled> sampled;
  std::vector<const void*> answer_rows;
  std::vector<std::byte> zero_row;
  std::vector<kernels::SampleScratch> scratch;  // One for each thread of the pool.
  std::vector<Command> batch;
  std::vector<LinkId> silent_links;
  scheduler::MicroBatchController controller;
  std::vector<MicroBatchTimes> micro_batch_times;
  bool worked_since_poll = false;  // What poll() finds may have come a while ago.
  uint64_t tokens_generated = 0;
  Traffic traffic;
  bool stopping = false;
  Nanos stop_deadline = 0;
  Nanos status_due = 0;
  bool unpublished = false;  // Something has happened since the status was published.

  // Crossing threads.
  Progress progress;
  Mailbox<Command> commands;
  std::atomic<uint64_t> next_sequence{1};
  std::atomic<uint32_t> accepted{0};  // Submitted and not ended: bounds the mailbox and the queue.
  std::atomic<bool> refusing{false};
  mutable std::mutex status_mutex;
  AttentionStatus published;  // Guarded by status_mutex.

  /// False when run() has ended.
  bool post_command(Command command) {
    const auto pushed = commands.push(std::move(command));
    // There is room for every submission that `accepted` admits, its cancel and thousands of
    // others: full means that the engine thread hangs, and a node that hangs must end so that
    // others take over.
    VOLLEY_CHECK(pushed != Mailbox<Command>::Push::kFull);
    fabric->wake();
    return pushed == Mailbox<Command>::Push::kOk;
  }

  void end(OutputSink* sink, SequenceId id, Status status) {
    accepted.fetch_sub(1, std::memory_order_relaxed);
    scheduler::SequenceOutput output;
    output.id = id;
    output.status = std::move(status);
    sink->on_output(output);
  }

  void handle(SubmitCommand& command) {
    if (stopping)
      return end(command.sink, command.id, unavailable("{} is shutting down", options.name));
    if (const Status ready = core.ready(); !ready.ok()) return end(command.sink, command.id, ready);
    for (const int32_t token : command.request.tokens) {
      if (token < 0 || static_cast<uint32_t>(token) >= vocab) {
        return end(
            command.sink, command.id,
            invalid_argument("token id {} is outside of the vocabulary of {}", token, vocab));
      }
    }
    const Status status =
        core.scheduler().submit({.id = command.id,
                                 .tokens = std::move(command.request.tokens),
                                 .max_new_tokens = command.request.max_new_tokens,
                                 .stop_tokens = std::move(command.request.stop_tokens),
                                 .deadline = command.request.deadline},
                                monotonic_now());
    if (!status.ok()) return end(command.sink, command.id, status);
    live.emplace(command.id, Live{.sink = command.sink, .sampling = command.request.sampling});
  }
  void handle(CancelCommand& command) {
    core.scheduler().cancel(command.id, Status(StatusCode::kCancelled, "cancelled by the caller"));
  }
  void handle(PreemptCommand& command) { core.scheduler().preempt(command.id); }
  void handle(ClusterUpdate& update) {
    core.set_map(update.map);
    links.update(update.experts, monotonic_now(), [this](LinkId link) { core.link_closed(link); });
  }
  void handle(StopCommand& command) {
    stopping = true;
    stop_deadline = command.deadline;
  }

  void handle_commands() {
    commands.take_all(batch);
    unpublished = unpublished || !batch.empty();
    for (Command& command : batch) {
      std::visit([this](auto& alternative) { handle(alternative); }, command);
    }
  }

  void drop_link(LinkId link, const Status& reason) {
    spdlog::warn("{}: link to {} closed: {}", options.name, fabric->peer(link).name,
                 message_of(reason));
    fabric->close(link);
    links.closed(link, monotonic_now());
    core.link_closed(link);
  }

  void handle_events() {
    std::array<transport::FabricEvent, kEventsPerPoll> events;
    const size_t count = fabric->poll(events);
    const Nanos now = count > 0 ? monotonic_now() : 0;
    unpublished = unpublished || count > 0;
    for (size_t i = 0; i < count; ++i) {
      const transport::FabricEvent& event = events[i];
      if (!links.has(event.link)) continue;  // Dropped earlier in this batch of events.
      switch (event.kind) {
        case transport::EventKind::kOpened: {
          const transport::NodeIdentity& peer = fabric->peer(event.link);
          spdlog::info("{}: link to {} open over {}", options.name, peer.name, fabric->name());
          links.opened(event.link);
          core.link_opened(event.link, peer.name, peer.incarnation);
          break;
        }
        case transport::EventKind::kMessage: {
          const protocol::MessageHeader& header = fabric->recv_header(event.link, event.slot);
          note_answer(header, now);
          if (const Status status = core.on_message(event.link, event.slot, header); !status.ok()) {
            drop_link(event.link, status);
          }
          break;
        }
        case transport::EventKind::kClosed:
          spdlog::warn("{}: link {} closed: {}", options.name, links.name_of(event.link),
                       fabric->close_reason(event.link));
          links.closed(event.link, monotonic_now());
          core.link_closed(event.link);
          break;
      }
    }
    worked_since_poll = false;
  }

  /// Takes the times out of an answer. They change nothing but what is measured, so the answer need
  /// not have been checked against its dispatch.
  void note_answer(const protocol::MessageHeader& header, Nanos now) {
    if (header.kind != protocol::MessageKind::kAnswer) return;
    MicroBatchTimes& times = micro_batch_times[header.micro_batch];
    const protocol::AnswerTimes& answer = header.times;
    times.expert = std::max(times.expert, Nanos{answer.compute_ns});
    const bool queue_known = answer.queue_ns != protocol::AnswerTimes::kUnknown;
    const Nanos away = now - times.posted - answer.compute_ns - (queue_known ? answer.queue_ns : 0);
    (queue_known && !worked_since_poll ? times.exact : times.bound)
        .note(std::max<Nanos>(away / 2, 0));
  }

  /// A decode step has one row per sequence. Only these are learned from: m serves decoding, and a
  /// row of a prompt costs something else.
  static bool decodes(const scheduler::StepPlan& plan) {
    return plan.row_count == plan.chunks.size();
  }

  /// All answers of a fragment are in.
  static void end_fragment(MicroBatchTimes& times) {
    times.expert_sum += std::exchange(times.expert, 0);
    times.exact.end_fragment();
    times.bound.end_fragment();
  }

  /// A step has ended: the moment to change the number of micro-batches. Samples are means over
  /// the step's layers.
  void learn_from_step(const MicroBatchTimes& times, uint32_t decode_rows) {
    if (decode_rows == 0) return;
    const Nanos now = profile.last();
    controller.on_attention(decode_rows, times.computed / layers, now);
    controller.on_expert(decode_rows, times.expert_sum / layers, now);
    const bool exact = times.exact.fragments > 0;
    const TransferTimes& transfer = exact ? times.exact : times.bound;
    if (transfer.fragments > 0) {
      controller.on_transfer(decode_rows, transfer.sum / transfer.fragments, exact, now);
    }
    if (!options.adaptive_micro_batches) return;
    core.scheduler().set_active_micro_batches(
        controller.decide(core.scheduler().stats().running, now));
  }

  void tick() {
    const Nanos now = monotonic_now();
    links.for_each_open([this](LinkId link) { core.heard(link, fabric->last_heard(link)); });
    const std::span<const LinkId> silent = core.tick(now);
    silent_links.assign(silent.begin(), silent.end());
    for (const LinkId link : silent_links) {
      drop_link(link, Status(StatusCode::kDeadlineExceeded,
                             fmt::format("silent for more than {} ms",
                                         options.link_timeout / kMillisecond)));
    }
    links.retry(now);
    if (stopping && now >= stop_deadline) {
      core.scheduler().cancel_all(
          unavailable("{} was shut down before the sequence ended", options.name));
    }
  }

  void post_dispatches() {
    for (const scheduler::OutgoingDispatch& dispatch : core.take_dispatches()) {
      const SpanSubject subject{.micro_batch = dispatch.header.micro_batch,
                                .layer = dispatch.header.layer,
                                .rows = dispatch.header.row_count};
      std::byte* slot = fabric->send_slot(dispatch.link, dispatch.slot);
      profile.lap(Span::kSchedule, {.micro_batch = subject.micro_batch, .layer = subject.layer});
      stage->pack(dispatch.header.micro_batch, dispatch.rows,
                  protocol::row_of(slot, geometry.dispatch, 0));
      profile.lap(Span::kPack, subject);
      protocol::MessageHeader& header = protocol::header_of(slot);
      header = dispatch.header;
      header.link = fabric->wire_link(dispatch.link);
      std::ranges::copy(dispatch.entries,
                        protocol::entries_of(slot, geometry.dispatch,
                                             static_cast<uint32_t>(dispatch.entries.size()))
                            .begin());
      if (geometry.combine() == protocol::Combine::kPreReduce) {
        stage->write_weights(dispatch.header.micro_batch, dispatch.header.layer, dispatch.entries,
                             dispatch.rows,
                             protocol::weights_of(slot, geometry.dispatch, header.entry_count));
      }
      fabric->post(dispatch.link, dispatch.slot);
      traffic.count_saved(dispatch.header, geometry);
      profile.lap(Span::kPost, subject);
      micro_batch_times[dispatch.header.micro_batch].posted = profile.last();
    }
  }

  void run_work(const Work& work) {
    MicroBatchTimes& times = micro_batch_times[work.micro_batch];
    const bool ends = work.stage == Work::Stage::kHead;
    // Asked now: the plan is gone when the step has ended.
    const uint32_t decode_rows = decodes(*work.plan) ? work.plan->row_count : 0;
    if (work.stage == Work::Stage::kAttention && work.layer == 0) times = {};
    const Nanos start = profile.last();
    stage->begin_work(start);
    profile.lap(Span::kSchedule, {.micro_batch = work.micro_batch, .layer = work.layer});
    if (work.combine_begin < work.combine_end) {
      end_fragment(times);
      answer_rows.clear();
      for (const scheduler::AnswerRef& ref : work.answers) {
        answer_rows.push_back(
            ref.index != scheduler::AnswerRef::kNone
                ? static_cast<const void*>(protocol::row_of(fabric->recv_slot(ref.link, ref.slot),
                                                            geometry.answer, ref.index))
                : zero_row.data());
      }
      // The layer whose answers these are: the stage belongs to the next one, but for the later
      // fragments of the same layer.
      const uint32_t answered = work.stage == Work::Stage::kAttention ? work.layer - 1 : work.layer;
      stage->combine(work.micro_batch, answered, work.combine_begin, work.combine_end, answer_rows);
      profile.lap(Span::kCombine, {.micro_batch = work.micro_batch,
                                   .layer = answered,
                                   .rows = work.combine_end - work.combine_begin});
    }
    switch (work.stage) {
      case Work::Stage::kAttention: {
        const auto chosen = stage->attention(work.micro_batch, work.layer, *work.plan);
        profile.lap(
            Span::kAttention,
            {.micro_batch = work.micro_batch, .layer = work.layer, .rows = work.plan->row_count});
        core.route(work.micro_batch, chosen);
        break;
      }
      case Work::Stage::kPack:
        break;
      case Work::Stage::kHead:
        run_head(work);
        break;
    }
    post_dispatches();
    times.computed += profile.last() - start;
    stage->end_work(profile.last());
    if (ends) learn_from_step(times, decode_rows);
  }

  void run_head(const Work& work) {
    sampled.clear();
    SpanSubject group{.micro_batch = work.micro_batch, .layer = work.layer};
    uint32_t done = 0;
    while (true) {
      const auto chunks = stage->head(work.micro_batch, *work.plan, done);
      if (chunks.empty()) break;
      group.rows = static_cast<uint32_t>(chunks.size());
      profile.lap(Span::kHead, group);
      sample_rows(chunks);
      profile.lap(Span::kSample, group);
      done += group.rows;
    }
    core.finish_step(work.micro_batch, sampled);
  }

  /// Appends to `sampled`, on all threads of the pool: they only read while this thread waits.
  void sample_rows(std::span<const scheduler::Chunk* const> chunks) {
    const size_t first = sampled.size();
    sampled.resize(first + chunks.size());
    // A tile for each scratch, so that no two threads share one; neighbouring rows, which may be
    // of one client and cost the same, go to different tiles.
    const auto tiles = static_cast<uint32_t>(std::min(scratch.size(), chunks.size()));
    pool.parallel_for(tiles, [&](uint32_t tile) {
      for (uint32_t i = tile; i < chunks.size(); i += tiles) {
        // One that was cancelled inside the step is not here any more.
        const auto it = live.find(chunks[i]->sequence);
        if (it == live.end()) continue;
        sampled[first + i] = stage->sample(i, it->second.sampling, scratch[tile]);
      }
    });
  }

  void deliver_outputs() {
    core.scheduler().take_outputs(outputs);
    for (const scheduler::SequenceOutput& output : outputs) {
      const auto it = live.find(output.id);
      VOLLEY_CHECK(it != live.end());  // SCHED-2: nothing follows an ended() output.
      OutputSink* sink = it->second.sink;
      if (output.token >= 0) ++tokens_generated;
      if (output.ended()) {
        live.erase(it);
        accepted.fetch_sub(1, std::memory_order_relaxed);
      }
      sink->on_output(output);
    }
  }

  scheduler::MicroBatchDecision micro_batch_decision() const {
    if (options.adaptive_micro_batches) return controller.decision();
    return {.micro_batches = options.micro_batches};
  }

  auto measured_times() const {
    std::array<MeasuredTimes, scheduler::TimeCurve::kBuckets> measured;
    for (uint32_t i = 0; i < scheduler::TimeCurve::kBuckets; ++i) {
      const auto& attention = controller.attention().points()[i];
      const auto& expert = controller.expert().points()[i];
      const auto& transfer = controller.transfer().points()[i];
      if (!attention.usable() || !expert.usable()) continue;
      measured[i] = {.rows = attention.rows,
                     .attention = static_cast<Nanos>(attention.time),
                     .expert = static_cast<Nanos>(expert.time),
                     .transfer = transfer.usable() ? static_cast<Nanos>(transfer.time) : 0};
    }
    return measured;
  }

  void publish_status(bool idle) {
    const Nanos now = monotonic_now();
    if (now < status_due && !(idle && unpublished)) return;
    status_due = now + kStatusInterval;
    unpublished = false;
    traffic.set_counters(fabric->counters());
    const scheduler::BatchScheduler::Stats stats = core.scheduler().stats();
    const Status ready = stopping ? unavailable("{} is shutting down", options.name) : core.ready();
    AttentionStatus next{.ready = ready.ok(),
                         .reason = message_of(ready),
                         .waiting = stats.waiting,
                         .running = stats.running,
                         .kv_blocks_free = stats.blocks_free,
                         .kv_blocks_total = stats.blocks_total,
                         .links = links.open_count(),
                         .active_micro_batches = core.scheduler().active_micro_batches(),
                         .steps = stats.steps,
                         .tokens_generated = tokens_generated,
                         .prefill_tokens = stats.prefill_tokens,
                         .preemptions = stats.preemptions,
                         .micro_batches = micro_batch_decision(),
                         .measured = measured_times(),
                         .weight_bytes = stage->weight_bytes(),
                         .kv_bytes = stage->kv_bytes(),
                         .link_bytes = geometry.region_bytes() * links.open_count(),
                         .traffic = traffic,
                         .profile = profile.totals()};
    bool changed = false;
    {
      const std::lock_guard lock(status_mutex);
      changed = published.ready != next.ready;
      published = std::move(next);
    }
    if (changed && options.on_ready_changed) options.on_ready_changed();
  }

  void begin() override {
    if (const Status pinned = pool.pin_caller(); !pinned.ok()) {
      spdlog::warn("{}: {}", options.name, message_of(pinned));
    }
    profile.start(monotonic_now());
  }

  Turn turn() override {
    progress.turn(monotonic_now());
    handle_commands();
    handle_events();
    tick();
    post_dispatches();  // What a lost link makes another holder take over.
    Work work;
    bool worked = false;
    if (core.next_work(work)) {
      run_work(work);
      worked = worked_since_poll = true;
    }
    deliver_outputs();
    unpublished = unpublished || worked;
    publish_status(!worked);
    profile.lap(Span::kSchedule);
    // The peers are looked at between any two computations, but not waited for.
    if (worked) return {.kind = Turn::Kind::kWorked};
    // Past the deadline every sequence has ended; what the experts still owe for them is not
    // waited for.
    if (stopping && live.empty() && (core.scheduler().idle() || monotonic_now() >= stop_deadline))
      return {.kind = Turn::Kind::kEnded};
    Nanos wake_at = monotonic_now() + std::min(kIdleWait, options.link_timeout / 4);
    if (const Nanos deadline = core.scheduler().next_deadline(); deadline != 0) {
      wake_at = std::min(wake_at, deadline);
    }
    if (stopping) wake_at = std::min(wake_at, stop_deadline);
    return {.kind = Turn::Kind::kNothing, .wake_at = wake_at};
  }

  bool linked() const override { return links.open_count() > 0; }
  void wait(Nanos until) override { fabric->wait(until); }
  void rested() override { profile.lap(core.scheduler().idle() ? Span::kIdle : Span::kWait); }

  void finish() override {
    // Submissions that raced with stop() still get their end.
    commands.close();
    handle_commands();
    deliver_outputs();
    links.close_all();
    profile.lap(Span::kSchedule);
    status_due = 0;
    publish_status(false);
  }
};

protocol::LinkGeometry AttentionEngine::geometry(const model::ModelSpec& spec,
                                                 uint32_t micro_batches, uint32_t rows_max,
                                                 kernels::DType dtype, bool fp8_dispatch,
                                                 protocol::Combine combine) {
  return protocol::LinkGeometry::make(micro_batches, rows_max, spec.layers.front().moe.top_k,
                                      dispatch_row_bytes(spec.hidden, dtype, fp8_dispatch),
                                      dispatch_row_bytes(spec.hidden, dtype, false), combine);
}

Result<std::unique_ptr<AttentionEngine>> AttentionEngine::create(
    const AttentionEngineOptions& requested, const model::ModelSpec& spec,
    model::AttentionWeights weights, const kernels::CpuKernels& kernels,
    std::unique_ptr<transport::Fabric> fabric) {
  VOLLEY_ASSIGN_OR_RETURN(const AttentionEngineOptions options, checked(requested, spec));
  auto impl = std::make_unique<Impl>(options, spec, std::move(fabric));
  VOLLEY_ASSIGN_OR_RETURN(impl->stage,
                          AttentionStep::create({.dtype = options.dtype,
                                                 .fp8_dispatch = options.fp8_dispatch,
                                                 .combine = options.geometry.combine(),
                                                 .micro_batches = options.micro_batches,
                                                 .rows_max = options.tokens_per_step_max,
                                                 .kv_blocks = options.kv_blocks},
                                                spec, std::move(weights), kernels, impl->pool));
  impl->published.reason = "starting";
  return std::unique_ptr<AttentionEngine>(new AttentionEngine(std::move(impl)));
}

Result<std::unique_ptr<AttentionEngine>> AttentionEngine::create_modelled(
    const AttentionEngineOptions& requested, const model::ModelSpec& spec,
    const ModelledCompute& compute, std::unique_ptr<transport::Fabric> fabric) {
  VOLLEY_ASSIGN_OR_RETURN(AttentionEngineOptions options, checked(requested, spec));
  // There is nothing to share out, and threads that wait for work spin at first.
  options.threads = 1;
  options.cores.clear();
  options.pool = nullptr;
  auto impl = std::make_unique<Impl>(options, spec, std::move(fabric));
  impl->stage = std::make_unique<ModelledAttention>(
      ModelledAttentionOptions{.name = options.name,
                               .row_bytes = options.geometry.dispatch.row_bytes,
                               .rows_max = options.tokens_per_step_max},
      spec, compute);
  impl->published.reason = "starting";
  return std::unique_ptr<AttentionEngine>(new AttentionEngine(std::move(impl)));
}

AttentionEngine::AttentionEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AttentionEngine::~AttentionEngine() = default;

Result<SequenceId> AttentionEngine::submit(GenerationRequest request, OutputSink* sink) {
  if (impl_->refusing.load(std::memory_order_acquire)) {
    return unavailable("{} is shutting down", impl_->options.name);
  }
  const uint32_t limit = impl_->options.waiting_max + impl_->options.sequences_max;
  if (impl_->accepted.fetch_add(1, std::memory_order_relaxed) >= limit) {
    impl_->accepted.fetch_sub(1, std::memory_order_relaxed);
    return resource_exhausted("{} has {} sequences, its limit", impl_->options.name, limit);
  }
  const SequenceId id{impl_->next_sequence.fetch_add(1, std::memory_order_relaxed)};
  if (!impl_->post_command(SubmitCommand{.id = id, .request = std::move(request), .sink = sink})) {
    impl_->accepted.fetch_sub(1, std::memory_order_relaxed);
    return unavailable("{} is shutting down", impl_->options.name);
  }
  return id;
}

void AttentionEngine::cancel(SequenceId id) {
  impl_->post_command(CancelCommand{id});
}
void AttentionEngine::preempt(SequenceId id) {
  impl_->post_command(PreemptCommand{id});
}
void AttentionEngine::update_cluster(ClusterUpdate update) {
  impl_->post_command(std::move(update));
}

AttentionStatus AttentionEngine::status() const {
  const std::lock_guard lock(impl_->status_mutex);
  return impl_->published;
}

std::vector<SpanRecord> AttentionEngine::take_trace() const {
  return impl_->profile.trace();
}

void AttentionEngine::run() {
  impl_->run();
}

EngineLoop& AttentionEngine::loop() {
  return *impl_;
}

void AttentionEngine::stop(Nanos deadline) {
  impl_->refusing.store(true, std::memory_order_release);
  impl_->post_command(StopCommand{deadline});
}

void AttentionEngine::pulse() {
  if (!impl_->progress.stalled(monotonic_now())) impl_->fabric->pulse();
}

}  // namespace volley::engine
