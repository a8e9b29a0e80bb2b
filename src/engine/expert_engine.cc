#include "volley/engine/expert_engine.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "engine_loop.h"
#include "expert_kernels.h"
#include "matrix.h"
#include "modelled_expert.h"
#include "progress.h"
#include "volley/base/check.h"
#include "volley/base/clock.h"
#include "volley/base/thread_pool.h"
#include "volley/engine/dispatch_rows.h"
#include "volley/protocol/link.h"
#include "volley/scheduler/gather.h"

namespace volley::engine {
namespace {

using protocol::MessageHeader;
using protocol::MessageKind;
using protocol::Refusal;
using scheduler::GatherDecision;
using scheduler::PendingDispatch;

constexpr size_t kEventsPerPoll = 64;
constexpr Nanos kIdleWait = 100 * kMillisecond;
constexpr Nanos kStatusInterval = 20 * kMillisecond;
// A step that begins shows itself with its first dispatch only: the attention of one layer comes
// before that.
constexpr Nanos kQuietMin = kSecond;
// (token, expert) pairs in one run at most, unless a single dispatch has more: bounds the
// workspace.
constexpr uint32_t kRunRowsMax = 4096;
constexpr uint32_t kNoPlace = 0xffffffff;

void average(Nanos& mean, Nanos value) {
  mean = mean == 0 ? value : mean + (value - mean) / 8;
}

Status check(const ExpertEngineOptions& options, const model::ModelSpec& spec) {
  VOLLEY_RETURN_IF_ERROR(
      check_row_bytes(options.geometry, spec.hidden, options.dtype, options.fp8_dispatch));
  if (options.threads == 0 || options.links_max == 0) {
    return invalid_argument("threads ({}) and links_max ({}) must not be 0", options.threads,
                            options.links_max);
  }
  if (!options.cores.empty() && options.cores.size() < options.threads) {
    return invalid_argument("{} threads cannot be pinned to {} cores", options.threads,
                            options.cores.size());
  }
  return ok_status();
}

}  // namespace

struct ExpertEngine::Impl final : EngineLoop {
  /// A dispatch that waits in its receive slot. The entries are our own copy, checked once: what
  /// lies in shared memory could change under us.
  struct Waiting {
    MessageHeader header;
    std::vector<protocol::Entry> entries;
    std::vector<float> weights;  ///< With kPreReduce: of the entries. Copied as they are.
    bool late = false;           ///< It came while the node was computing, who knows when.
  };
  struct Link {
    std::string name;
    protocol::AnswerLink state;
    std::vector<Waiting> slots;
  };
  /// One (token, expert) pair of a run.
  struct Pair {
    uint32_t expert;
    const void* input;
    void* output;
  };

  Impl(const ExpertEngineOptions& opts, const model::ModelSpec& model_spec,
       std::unique_ptr<transport::Fabric> link_fabric)
      : options(opts),
        spec(model_spec),
        geometry(opts.geometry),
        pre_reduce(geometry.combine() == protocol::Combine::kPreReduce),
        rows_max(std::max(kRunRowsMax, geometry.dispatch.entries_max)),
        pool_owner(opts.pool ? opts.pool : std::make_shared<ThreadPool>(opts.threads, opts.cores)),
        pool(*pool_owner),
        fabric(std::move(link_fabric)),
        profile(opts.trace_capacity),
        gather({.layers = model_spec.layer_count(),
                .rows_max = rows_max,
                .window_max = opts.gather_window_max}) {}

  Status allocate() {
    if (options.fp8_dispatch) {
      // A run has at most as many rows as pairs: rows that no entry names are not read.
      VOLLEY_ASSIGN_OR_RETURN(
          widened, Matrix::create(rows_max, spec.hidden * kernels::dtype_bytes(options.dtype)));
      packed_rows.reserve(rows_max);
      place_of_row.resize(geometry.dispatch.rows_max);
    }
    if (pre_reduce) {
      // A dispatch has at most as many rows as entries (validate_header), so a run has, too.
      VOLLEY_ASSIGN_OR_RETURN(
          terms, Matrix::create(rows_max, spec.hidden * kernels::dtype_bytes(options.dtype)));
      term_inputs.reserve(rows_max);
      term_weights.reserve(rows_max);
      first_term.reserve(size_t{rows_max} + 1);
      sums.reserve(rows_max);
      next_term.resize(geometry.dispatch.rows_max);
    }
    pairs.reserve(rows_max);
    sorted.reserve(rows_max);
    inputs.reserve(rows_max);
    outputs.reserve(rows_max);
    groups.reserve(spec.layers.front().moe.experts);
    counts.reserve(spec.layers.front().moe.experts + 1);
    return ok_status();
  }

  const ExpertEngineOptions options;
  const model::ModelSpec spec;
  const protocol::LinkGeometry geometry;
  const bool pre_reduce;
  const uint32_t rows_max;
  const std::shared_ptr<ThreadPool> pool_owner;
  ThreadPool& pool;
  std::unique_ptr<transport::Fabric> fabric;

  // Owned by the engine thread.
  Profile profile;
  std::unique_ptr<ExpertStage> stage;
  scheduler::GatherPolicy gather;
  std::map<LinkId, Link> links;
  // With fp8 dispatches: the run's rows as they came, and widened to `dtype`, each once.
  Matrix widened;
  std::vector<const void*> packed_rows;
  std::vector<uint32_t> place_of_row;  // Of one dispatch: where its rows are in the two above.
  // With kPreReduce: what the experts made of the run's pairs, in the order of collect(), and what
  // is added up of it to which row of which answer.
  Matrix terms;
  std::vector<const void*> term_inputs;
  std::vector<float> term_weights;
  std::vector<uint32_t> first_term;  // [sums + 1]
  std::vector<void*> sums;
  std::vector<uint32_t> next_term;  // Of one dispatch: per row, where its next term goes.
  std::vector<Pair> pairs, sorted;
  std::vector<uint32_t> counts;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  std::vector<ExpertStage::Group> groups;
  bool waits = false;  // Answers are awaited from it, or dispatches of a step under way.
  Nanos expert_time = 0;
  Nanos last_dispatch = 0;
  bool computed_since_poll = false;  // What poll() finds may have come a while ago.
  Nanos stop_seen = 0;               // When run() first saw `stopping`.
  uint64_t rows_computed = 0, refusals = 0;
  Traffic traffic;
  Nanos status_due = 0;

  // Crossing threads.
  Progress progress;
  std::atomic<bool> stopping{false};
  std::atomic<Nanos> stop_deadline{0};
  mutable std::mutex status_mutex;
  ExpertStatus published;  // Guarded by status_mutex.

  MessageHeader answer_header(const MessageHeader& dispatch) const {
    MessageHeader header = dispatch;
    header.kind = MessageKind::kAnswer;
    header.incarnation = options.incarnation.value;
    header.row_count = geometry.answer_rows(dispatch.row_count, dispatch.entry_count);
    header.entry_count = 0;
    header.dtype = static_cast<uint8_t>(options.dtype);
    header.row_bytes = geometry.answer.row_bytes;
    header.refusal = Refusal::kNone;
    header.times = {.compute_ns = 0, .queue_ns = 0};
    return header;
  }

  void answer(LinkId id, Link& link, uint32_t slot, const protocol::AnswerTimes& times) {
    std::byte* out = fabric->send_slot(id, slot);
    MessageHeader header = answer_header(link.slots[slot].header);
    header.times = times;
    protocol::header_of(out) = header;
    link.state.on_answered(slot);
    fabric->post(id, slot);
    traffic.count_saved_by_answer(link.slots[slot].header, geometry);
  }

  void refuse(LinkId id, Link& link, uint32_t slot, Refusal why) {
    std::byte* out = fabric->send_slot(id, slot);
    MessageHeader header = answer_header(link.slots[slot].header);
    header.kind = MessageKind::kRefusal;
    header.row_count = 0;
    header.refusal = why;
    protocol::header_of(out) = header;
    link.state.on_answered(slot);
    fabric->post(id, slot);
    ++refusals;
  }

  void drop_link(LinkId id, const Status& reason) {
    spdlog::warn("{}: link from {} closed: {}", options.name, links.at(id).name,
                 message_of(reason));
    fabric->close(id);
    gather.on_link_closed(id);
    links.erase(id);
  }

  /// Copies and checks the dispatch, then queues it. Errors: kDataLoss; the link must go.
  Status accept(LinkId id, Link& link, uint32_t slot) {
    const MessageHeader& header = fabric->recv_header(id, slot);
    switch (link.state.on_dispatch(slot, header.sequence)) {
      case protocol::AnswerLink::Dispatch::kCompute:
        break;
      case protocol::AnswerLink::Dispatch::kViolation:
        return data_loss("slot {} got sequence {} before its last dispatch was answered", slot,
                         header.sequence);
      case protocol::AnswerLink::Dispatch::kDuplicate:
      case protocol::AnswerLink::Dispatch::kStale:
      case protocol::AnswerLink::Dispatch::kRepeat:  // A link loses no answer while it lives.
        return ok_status();
    }
    Waiting& waiting = link.slots[slot];
    waiting.header = header;
    waiting.late = computed_since_poll;
    const auto entries =
        protocol::entries_of(fabric->recv_slot(id, slot), geometry.dispatch, header.entry_count);
    waiting.entries.assign(entries.begin(), entries.end());
    if (pre_reduce) {
      const auto given =
          protocol::weights_of(fabric->recv_slot(id, slot), geometry.dispatch, header.entry_count);
      waiting.weights.assign(given.begin(), given.end());
    }
    VOLLEY_RETURN_IF_ERROR(protocol::validate_entries(waiting.entries, header.row_count,
                                                      spec.layers.front().moe.experts));
    for (const protocol::Entry& entry : waiting.entries) {
      if (!stage->holds(waiting.header.layer, entry.expert)) {
        refuse(id, link, slot, Refusal::kNotHeld);
        return ok_status();
      }
    }
    last_dispatch = monotonic_now();
    gather.on_dispatch({.link = id,
                        .slot = slot,
                        .layer = waiting.header.layer,
                        .entry_count = waiting.header.entry_count,
                        .arrived = last_dispatch});
    return ok_status();
  }

  void handle_events() {
    std::array<transport::FabricEvent, kEventsPerPoll> events;
    const size_t count = fabric->poll(events);
    for (size_t i = 0; i < count; ++i) {
      const transport::FabricEvent& event = events[i];
      if (event.kind == transport::EventKind::kOpened) {
        const transport::NodeIdentity& peer = fabric->peer(event.link);
        spdlog::info("{}: link from {} open over {}", options.name, peer.name, fabric->name());
        const uint32_t slots = geometry.slot_count();
        Link& link = links
                         .insert_or_assign(event.link, Link{.name = peer.name,
                                                            .state = protocol::AnswerLink(slots),
                                                            .slots = std::vector<Waiting>(slots)})
                         .first->second;
        for (Waiting& waiting : link.slots) {
          waiting.entries.reserve(geometry.dispatch.entries_max);
          if (pre_reduce) waiting.weights.reserve(geometry.dispatch.entries_max);
        }
        gather.on_link_opened(event.link, geometry.micro_batches);
        continue;
      }
      const auto it = links.find(event.link);
      if (it == links.end()) continue;  // Dropped earlier in this batch of events.
      if (event.kind == transport::EventKind::kClosed) {
        spdlog::info("{}: link from {} closed: {}", options.name, it->second.name,
                     fabric->close_reason(event.link));
        gather.on_link_closed(event.link);
        links.erase(it);
      } else if (const Status status = accept(event.link, it->second, event.slot); !status.ok()) {
        drop_link(event.link, status);
      }
    }
    computed_since_poll = false;
  }

  void drop_silent_links() {
    const Nanos now = monotonic_now();
    for (auto it = links.begin(); it != links.end();) {
      const LinkId id = (it++)->first;  // drop_link() erases it.
      if (now - fabric->last_heard(id) > options.link_timeout) {
        drop_link(id, Status(StatusCode::kDeadlineExceeded,
                             fmt::format("silent for more than {} ms",
                                         options.link_timeout / kMillisecond)));
      }
    }
  }

  /// Where the row of the dispatch in hand will be once widen() has run.
  const void* place_widened(uint32_t index, const std::byte* packed_row) {
    uint32_t& place = place_of_row[index];
    if (place == kNoPlace) {
      place = static_cast<uint32_t>(packed_rows.size());
      VOLLEY_CHECK(place < rows_max);
      packed_rows.push_back(packed_row);
    }
    return widened.row(place);
  }

  /// Brings the rows of fp8 dispatches to `dtype`.
  void widen() {
    const auto count = static_cast<uint32_t>(packed_rows.size());
    if (count == 0) return;
    stage->widen(packed_rows, widened.rows(0, count));
  }

  /// Where the FFN of the next pair writes with kPreReduce.
  void* next_term_row() const {
    VOLLEY_CHECK(pairs.size() < rows_max);
    return terms.row(static_cast<uint32_t>(pairs.size()));
  }

  /// Lists the pairs of all dispatches by expert: a counting sort, so that equal inputs give equal
  /// orders.
  void collect(const GatherDecision& run) {
    pairs.clear();
    packed_rows.clear();
    counts.assign(spec.layers.front().moe.experts + 1, 0);
    for (const PendingDispatch& dispatch : run.dispatches) {
      const Waiting& waiting = links.at(dispatch.link).slots[dispatch.slot];
      const std::byte* in = fabric->recv_slot(dispatch.link, dispatch.slot);
      std::byte* out = fabric->send_slot(dispatch.link, dispatch.slot);
      std::ranges::fill(place_of_row, kNoPlace);
      for (uint32_t i = 0; i < waiting.entries.size(); ++i) {
        const protocol::Entry& entry = waiting.entries[i];
        const std::byte* row = protocol::row_of(in, geometry.dispatch, entry.row);
        pairs.push_back(
            {.expert = entry.expert,
             .input = options.fp8_dispatch ? place_widened(entry.row, row) : row,
             .output = pre_reduce ? next_term_row() : protocol::row_of(out, geometry.answer, i)});
        ++counts[entry.expert + 1];
      }
    }
    groups.clear();
    for (uint32_t expert = 0; expert + 1 < counts.size(); ++expert) {
      const uint32_t rows = counts[expert + 1];
      counts[expert + 1] += counts[expert];
      if (rows == 0) continue;
      groups.push_back({.expert = expert, .first_row = counts[expert], .row_count = rows});
    }
    sorted.resize(pairs.size());
    for (const Pair& pair : pairs) sorted[counts[pair.expert]++] = pair;
    inputs.clear();
    outputs.clear();
    for (const Pair& pair : sorted) {
      inputs.push_back(pair.input);
      outputs.push_back(pair.output);
    }
  }

  /// With kPreReduce: sums the pairs of each row into the answers. The entries ascend by expert, so
  /// taking them in order gives every row its terms in that order.
  void sum_rows(const GatherDecision& run) {
    term_inputs.resize(pairs.size());
    term_weights.resize(pairs.size());
    sums.clear();
    first_term.assign(1, 0);
    uint32_t pair = 0;  // Of the run, as collect() has listed them.
    for (const PendingDispatch& dispatch : run.dispatches) {
      const Waiting& waiting = links.at(dispatch.link).slots[dispatch.slot];
      std::byte* out = fabric->send_slot(dispatch.link, dispatch.slot);
      const uint32_t rows = waiting.header.row_count;
      std::fill_n(next_term.begin(), rows, 0);
      for (const protocol::Entry& entry : waiting.entries) ++next_term[entry.row];
      for (uint32_t row = 0; row < rows; ++row) {
        const uint32_t first = first_term.back();
        first_term.push_back(first + next_term[row]);
        next_term[row] = first;
        sums.push_back(protocol::row_of(out, geometry.answer, row));
      }
      for (size_t i = 0; i < waiting.entries.size(); ++i) {
        const uint32_t place = next_term[waiting.entries[i].row]++;
        term_inputs[place] = terms.row(pair++);
        term_weights[place] = waiting.weights[i];
      }
    }
    stage->reduce(term_inputs, term_weights.data(), first_term, sums);
  }

  bool finite_answer(const PendingDispatch& dispatch) const {
    const MessageHeader& header = links.at(dispatch.link).slots[dispatch.slot].header;
    const std::byte* out = fabric->send_slot(dispatch.link, dispatch.slot);
    const uint32_t rows = geometry.answer_rows(header.row_count, header.entry_count);
    for (uint32_t i = 0; i < rows; ++i) {
      if (!stage->finite(protocol::row_of(out, geometry.answer, i))) return false;
    }
    return true;
  }

  void compute(const GatherDecision& run) {
    const PendingDispatch& first = run.dispatches.front();
    SpanSubject subject{.micro_batch = links.at(first.link).slots[first.slot].header.micro_batch,
                        .layer = run.layer};
    profile.lap(Span::kSchedule, subject);
    const Nanos start = profile.last();
    stage->begin_run(start);
    collect(run);
    VOLLEY_CHECK(pairs.size() <= rows_max);
    widen();
    subject.rows = static_cast<uint32_t>(pairs.size());
    profile.lap(Span::kPrepare, subject);
    if (!pairs.empty()) {
      stage->ffn(run.layer, groups, inputs, outputs);
      profile.lap(Span::kFfn, subject);
      if (pre_reduce) {
        sum_rows(run);
        profile.lap(Span::kCombine, subject);
      }
    }
    for (const PendingDispatch& dispatch : run.dispatches) {
      Link& link = links.at(dispatch.link);
      const Waiting& waiting = link.slots[dispatch.slot];
      const MessageHeader& header = waiting.header;
      const SpanSubject answered{
          .micro_batch = header.micro_batch, .layer = header.layer, .rows = header.entry_count};
      const bool finite = finite_answer(dispatch);
      profile.lap(Span::kCheck, answered);
      if (finite) {
        answer(dispatch.link, link, dispatch.slot,
               protocol::AnswerTimes::make(profile.last() - start,
                                           waiting.late ? -1 : start - dispatch.arrived));
      } else {
        spdlog::error("{}: layer {} gave a value that is not finite for {}", options.name,
                      run.layer, link.name);
        refuse(dispatch.link, link, dispatch.slot, Refusal::kNotFinite);
      }
      profile.lap(Span::kPost, answered);
    }
    const Nanos now = profile.last();
    stage->end_run(now);
    rows_computed += pairs.size();
    if (!pairs.empty()) average(expert_time, now - start);
    gather.on_answered(now, now - start);
  }

  void publish_status() {
    const Nanos now = monotonic_now();
    if (now < status_due) return;
    status_due = now + kStatusInterval;
    const scheduler::GatherPolicy::Stats stats = gather.stats();
    traffic.set_counters(fabric->counters());
    const std::lock_guard lock(status_mutex);
    published = {.links = static_cast<uint32_t>(links.size()),
                 .runs = stats.runs,
                 .dispatches = stats.dispatches,
                 .mergeable_runs = stats.mergeable_runs,
                 .merged_runs = stats.merged_runs,
                 .refusals = refusals,
                 .rows = rows_computed,
                 .expert_time = expert_time,
                 .weight_bytes = stage->weight_bytes(),
                 .link_bytes = geometry.region_bytes() * options.links_max,
                 .traffic = traffic,
                 .profile = profile.totals()};
  }

  /// The last dispatch of a micro-batch was not the last of its step: the next one is to come,
  /// however long the other nodes compute until then.
  bool step_under_way() const {
    for (const auto& [id, link] : links) {
      for (uint32_t slot = 0; slot < geometry.micro_batches; ++slot) {
        const MessageHeader& last = link.slots[slot].header;  // Sequence 0: there was none yet.
        if (last.sequence == 0) continue;
        if (last.layer + 1 < spec.layer_count() || last.fragment + 1 < last.fragment_count)
          return true;
      }
    }
    return false;
  }

  /// No attention node is in a step, and none has dispatched for a while since the stop began.
  bool quiet(Nanos now) const {
    const Nanos since = std::max(last_dispatch, stop_seen);
    return now - since > std::max(options.link_timeout, kQuietMin) && !step_under_way();
  }

  void begin() override {
    if (const Status pinned = pool.pin_caller(); !pinned.ok()) {
      spdlog::warn("{}: {}", options.name, message_of(pinned));
    }
    profile.start(monotonic_now());
  }

  Turn turn() override {
    handle_events();
    drop_silent_links();
    const Nanos now = monotonic_now();
    progress.turn(now);
    const GatherDecision decision = gather.decide(now);
    const bool runs = decision.kind == GatherDecision::Kind::kRun;
    if (runs) {
      compute(decision);
      computed_since_poll = true;
    }
    publish_status();
    waits = decision.kind == GatherDecision::Kind::kWait || step_under_way();
    profile.lap(Span::kSchedule);
    Nanos wake_at = now + std::min(kIdleWait, options.link_timeout / 4);
    if (stopping.load(std::memory_order_acquire)) {
      if (stop_seen == 0) stop_seen = now;
      const Nanos deadline = stop_deadline.load(std::memory_order_relaxed);
      if (links.empty() || now >= deadline || quiet(now)) return {.kind = Turn::Kind::kEnded};
      wake_at = std::min(wake_at, deadline);
    }
    if (runs) return {.kind = Turn::Kind::kWorked};
    if (decision.kind == GatherDecision::Kind::kWait)
      wake_at = std::min(wake_at, decision.wait_until);
    return {.kind = Turn::Kind::kNothing, .wake_at = wake_at};
  }

  bool linked() const override { return !links.empty(); }
  void wait(Nanos until) override { fabric->wait(until); }
  void rested() override { profile.lap(waits ? Span::kWait : Span::kIdle); }

  void finish() override {
    for (const auto& [id, link] : links) fabric->close(id);
    links.clear();
    profile.lap(Span::kSchedule);
    status_due = 0;
    publish_status();
  }
};

Result<std::unique_ptr<ExpertEngine>> ExpertEngine::create(
    const ExpertEngineOptions& options, const model::ModelSpec& spec, model::ExpertWeights weights,
    const kernels::CpuKernels& kernels, std::unique_ptr<transport::Fabric> fabric) {
  VOLLEY_RETURN_IF_ERROR(check(options, spec));
  auto impl = std::make_unique<Impl>(options, spec, std::move(fabric));
  VOLLEY_RETURN_IF_ERROR(impl->allocate());
  VOLLEY_ASSIGN_OR_RETURN(
      impl->stage, ExpertKernels::create({.dtype = options.dtype,
                                          .rows_max = impl->rows_max,
                                          .packed_row_bytes = options.geometry.dispatch.row_bytes},
                                         spec, std::move(weights), kernels, impl->pool));
  return std::unique_ptr<ExpertEngine>(new ExpertEngine(std::move(impl)));
}

Result<std::unique_ptr<ExpertEngine>> ExpertEngine::create_modelled(
    const ExpertEngineOptions& requested, const model::ModelSpec& spec,
    std::span<const model::ExpertWeights::Key> experts, const ModelledCompute& compute,
    std::unique_ptr<transport::Fabric> fabric) {
  VOLLEY_RETURN_IF_ERROR(check(requested, spec));
  ExpertEngineOptions options = requested;
  // There is nothing to share out, and threads that wait for work spin at first.
  options.threads = 1;
  options.cores.clear();
  options.pool = nullptr;
  auto impl = std::make_unique<Impl>(options, spec, std::move(fabric));
  VOLLEY_RETURN_IF_ERROR(impl->allocate());
  VOLLEY_ASSIGN_OR_RETURN(impl->stage,
                          ModelledExpert::create(options.name, spec, experts, compute));
  return std::unique_ptr<ExpertEngine>(new ExpertEngine(std::move(impl)));
}

ExpertEngine::ExpertEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertEngine::~ExpertEngine() = default;

ExpertStatus ExpertEngine::status() const {
  const std::lock_guard lock(impl_->status_mutex);
  return impl_->published;
}

std::vector<SpanRecord> ExpertEngine::take_trace() const {
  return impl_->profile.trace();
}

void ExpertEngine::run() {
  impl_->run();
}

EngineLoop& ExpertEngine::loop() {
  return *impl_;
}

void ExpertEngine::stop(Nanos deadline) {
  impl_->stop_deadline.store(deadline, std::memory_order_relaxed);
  // Release: the engine thread that sees the flag sees the deadline.
  impl_->stopping.store(true, std::memory_order_release);
  impl_->fabric->wake();
}

void ExpertEngine::pulse() {
  if (!impl_->progress.stalled(monotonic_now())) impl_->fabric->pulse();
}

}  // namespace volley::engine
