// Iteration-level batching. The order of acceptance is the age of a sequence and decides every
// conflict: who is admitted, who gets blocks, who loses them. SequenceTable keeps where each
// sequence is; what becomes of it is decided here.

#include "volley/scheduler/batch_scheduler.h"

#include <algorithm>
#include <utility>

#include "sequence_table.h"
#include "volley/base/check.h"

namespace volley::scheduler {

namespace {

struct Step {
  StepPlan plan;
  std::vector<Sequence*> sequences;  ///< Per chunk.
  bool running = false;
};

}  // namespace

struct BatchScheduler::Impl {
  explicit Impl(const SchedulerOptions& given);

  SchedulerOptions options;
  cache::BlockAllocator blocks;
  uint32_t active;
  SequenceTable table;
  std::vector<Step> steps;
  std::vector<SequenceOutput> outputs;
  std::vector<SequenceId> expired;           ///< Scratch of tick().
  std::vector<Sequence*> decodes, prefills;  ///< Scratch of plan().
  /// The oldest sequence that was refused blocks, and how many it lacks: no younger one takes a
  /// block before it, and younger ones are preempted for it as their steps complete. Without this a
  /// sequence whose victims are always inside steps would starve (SCHED-1).
  Sequence* claimant = nullptr;
  uint32_t claim_blocks = 0;
  Stats stats;

  void end(Sequence* sequence, SequenceOutput output);
  void end_with(Sequence* sequence, const Status& status);
  void leave(Sequence* sequence);
  void preempt(Sequence* sequence);
  bool preempt_younger(const Sequence* sequence);
  bool acquire(Sequence* sequence, uint32_t token_count);
  void serve_claim();
  void rebalance();
  uint32_t quota() const;
  bool can_admit(uint32_t micro_batch) const;
  void add_to_step(Step& step, Sequence* sequence, uint32_t rows);
  void select(uint32_t micro_batch, Step& step);
  void accept_sample(Sequence* sequence, const Sampled& sample);
  void close_step(Step& step);
};

BatchScheduler::Impl::Impl(const SchedulerOptions& given)
    : options(given),
      blocks(given.block_count),
      active(given.micro_batches),
      table(given.micro_batches, given.sequences_max, given.waiting_max) {
  VOLLEY_CHECK(options.micro_batches >= 1 && options.tokens_per_step_max >= 1);
  VOLLEY_CHECK(options.sequences_max >= 1 && options.waiting_max >= 1);
  VOLLEY_CHECK(options.block_tokens >= 1 && options.sequence_tokens_max >= 2);
  VOLLEY_CHECK(cache::blocks_for(options.sequence_tokens_max, options.block_tokens) <=
               options.block_count);
  steps.resize(options.micro_batches);
  const size_t in_step_max = std::min(options.sequences_max, options.tokens_per_step_max);
  for (Step& step : steps) {
    step.plan.chunks.reserve(in_step_max);
    step.sequences.reserve(in_step_max);
  }
  decodes.reserve(options.sequences_max);
  prefills.reserve(options.sequences_max);
  outputs.reserve(options.sequences_max);
}

/// The last output of a live sequence. Inside a step it keeps its storage until the step is over.
void BatchScheduler::Impl::end(Sequence* sequence, SequenceOutput output) {
  VOLLEY_CHECK(!sequence->ended && output.ended());
  ++(output.status.ok() ? stats.finished : stats.failed);
  outputs.push_back(std::move(output));
  if (claimant == sequence) claimant = nullptr;
  table.end(*sequence);
  if (!sequence->in_step) leave(sequence);
}

void BatchScheduler::Impl::end_with(Sequence* sequence, const Status& status) {
  VOLLEY_CHECK(!status.ok());
  SequenceOutput output;
  output.id = sequence->id;
  output.status = status;
  end(sequence, std::move(output));
}

/// Frees everything an ended sequence holds.
void BatchScheduler::Impl::leave(Sequence* sequence) {
  blocks.release(sequence->blocks);
  table.erase(*sequence);
}

void BatchScheduler::Impl::preempt(Sequence* sequence) {
  table.send_back(*sequence);
  blocks.release(sequence->blocks);
  sequence->computed = 0;
  sequence->preempt_after_step = false;
  if (claimant == sequence) claimant = nullptr;  // At the head of the queue it claims anew.
  ++stats.preemptions;
}

/// Preempts the youngest running sequence that is in no step and younger than `sequence`, if any.
bool BatchScheduler::Impl::preempt_younger(const Sequence* sequence) {
  for (auto it = table.running().rbegin(); it != table.running().rend(); ++it) {
    if ((*it)->order <= sequence->order) return false;
    if ((*it)->in_step) continue;
    preempt(*it);
    return true;
  }
  return false;
}

/// Makes the sequence's blocks cover `token_count` tokens, at the cost of younger ones if need be.
bool BatchScheduler::Impl::acquire(Sequence* sequence, uint32_t token_count) {
  const uint32_t total = cache::blocks_for(token_count, options.block_tokens);
  const uint32_t held = static_cast<uint32_t>(sequence->blocks.size());
  if (total <= held) return true;
  if (claimant != nullptr && claimant->order < sequence->order) return false;
  const uint32_t lacking = total - held;
  while (blocks.free_count() < lacking) {
    if (preempt_younger(sequence)) continue;
    claimant = sequence;
    claim_blocks = lacking;
    return false;
  }
  if (claimant == sequence) claimant = nullptr;
  VOLLEY_CHECK(blocks.grow(sequence->blocks, total).ok());
  return true;
}

void BatchScheduler::Impl::serve_claim() {
  if (claimant == nullptr) return;
  while (blocks.free_count() < claim_blocks && preempt_younger(claimant)) {
  }
}

/// Hands sequences that are in no step, youngest first, from the fullest to the emptiest
/// micro-batch, and all of them out of those that are not active.
void BatchScheduler::Impl::rebalance() {
  for (auto it = table.running().rbegin(); it != table.running().rend(); ++it) {
    Sequence* sequence = *it;
    if (sequence->in_step) continue;
    const auto counts = table.counts();
    const auto active_end = counts.begin() + active;
    const auto fewest =
        static_cast<uint32_t>(std::min_element(counts.begin(), active_end) - counts.begin());
    const uint32_t own = sequence->micro_batch;
    if (own >= active || counts[own] > counts[fewest] + 1) table.move(*sequence, fewest);
  }
}

/// The running sequences that one micro-batch may have once all that can be admitted are.
uint32_t BatchScheduler::Impl::quota() const {
  const size_t live =
      std::min<size_t>(table.running().size() + table.waiting().size(), options.sequences_max);
  return static_cast<uint32_t>((live + active - 1) / active);
}

bool BatchScheduler::Impl::can_admit(uint32_t micro_batch) const {
  return !table.waiting().empty() && table.held_count() < options.sequences_max &&
         table.counts()[micro_batch] < quota();
}

void BatchScheduler::Impl::add_to_step(Step& step, Sequence* sequence, uint32_t rows) {
  VOLLEY_CHECK(rows > 0 && rows <= sequence->remaining());
  (sequence->decoding() ? stats.decode_tokens : stats.prefill_tokens) += rows;
  table.enter_step(*sequence);
  step.sequences.push_back(sequence);
  step.plan.chunks.push_back({.sequence = sequence->id,
                              .first_row = 0,
                              .row_count = rows,
                              .start_position = sequence->computed,
                              .emits = rows == sequence->remaining(),
                              .tokens = {},
                              .blocks = {}});
}

void BatchScheduler::Impl::select(uint32_t micro_batch, Step& step) {
  uint32_t budget = options.tokens_per_step_max;
  decodes.clear();
  prefills.clear();
  for (Sequence* sequence : table.running()) {
    if (sequence->micro_batch != micro_batch) continue;
    VOLLEY_CHECK(!sequence->in_step);
    (sequence->decoding() ? decodes : prefills).push_back(sequence);
  }

  // Decoding ones first; but when the oldest of all has still to be prefilled, one row is kept for
  // it, so that decoding younger ones cannot take the whole budget step after step (SCHED-1).
  const uint64_t oldest_decode = decodes.empty() ? UINT64_MAX : decodes.front()->order;
  const bool older_prefill =
      (!prefills.empty() && prefills.front()->order < oldest_decode) ||
      (can_admit(micro_batch) && table.waiting().front()->order < oldest_decode);
  const uint32_t reserved = older_prefill ? 1 : 0;
  for (Sequence* sequence : decodes) {
    if (budget <= reserved) break;
    // An older one of this loop may have preempted it.
    if (!sequence->running || !acquire(sequence, sequence->computed + 1)) continue;
    add_to_step(step, sequence, 1);
    --budget;
  }

  // Prefill chunks, oldest first; a waiting sequence gets all the blocks of its known tokens at
  // once, so that two long prompts cannot each hold half of what they need.
  size_t next_prefill = 0;
  while (budget > 0) {
    // Skips those that were preempted above, even when they were admitted again since.
    while (next_prefill < prefills.size() &&
           (!prefills[next_prefill]->running || prefills[next_prefill]->in_step)) {
      ++next_prefill;
    }
    Sequence* sequence = next_prefill < prefills.size() ? prefills[next_prefill] : nullptr;
    const bool admit = can_admit(micro_batch) &&
                       (sequence == nullptr || table.waiting().front()->order < sequence->order);
    if (admit) {
      sequence = table.waiting().front();
      if (!acquire(sequence, sequence->known()))
        break;  // First in, first out: nobody overtakes it.
      table.admit(*sequence, micro_batch);
      sequence->prefill_end = sequence->known();
    } else if (sequence != nullptr) {
      ++next_prefill;
    } else {
      break;
    }
    const uint32_t rows = std::min(budget, sequence->remaining());
    add_to_step(step, sequence, rows);
    budget -= rows;
  }
}

void BatchScheduler::Impl::accept_sample(Sequence* sequence, const Sampled& sample) {
  if (sample.token < 0) {
    end_with(sequence, internal_error("the logits of sequence {} at position {} are not finite",
                                      sequence->id.value, sequence->known()));
    return;
  }
  SequenceOutput output;
  output.id = sequence->id;
  output.token = sample.token;
  output.logprob = sample.logprob;
  output.logits_digest = sample.logits_digest;
  ++sequence->new_tokens;
  const auto& stops = sequence->stop_tokens;
  if (std::find(stops.begin(), stops.end(), sample.token) != stops.end()) {
    output.finish = FinishReason::kStop;
  } else if (sequence->new_tokens == sequence->new_tokens_max) {
    output.finish = FinishReason::kLength;
  }
  if (output.ended()) {
    end(sequence, std::move(output));
    return;
  }
  sequence->tokens.push_back(sample.token);
  outputs.push_back(std::move(output));
}

/// After complete() or abort_step(): lets go of the sequences of the step.
void BatchScheduler::Impl::close_step(Step& step) {
  for (Sequence* sequence : step.sequences) {
    table.leave_step(*sequence);
    if (sequence->ended) {
      leave(sequence);
    } else if (sequence->preempt_after_step) {
      preempt(sequence);
    }
  }
  step.sequences.clear();
  step.plan.chunks.clear();
  step.plan.row_count = 0;
  step.running = false;
  serve_claim();
}

BatchScheduler::BatchScheduler(SchedulerOptions options) : impl_(std::make_unique<Impl>(options)) {}
BatchScheduler::~BatchScheduler() = default;

Status BatchScheduler::submit(SequenceRequest request, Nanos now) {
  Impl& s = *impl_;
  if (request.tokens.empty()) return invalid_argument("a sequence needs at least one token");
  if (request.max_new_tokens == 0)
    return invalid_argument("max_new_tokens is 0, must be at least 1");
  const size_t length = request.tokens.size() + request.max_new_tokens;
  if (length > s.options.sequence_tokens_max) {
    return invalid_argument("{} tokens and {} new ones are {}, more than the limit of {}",
                            request.tokens.size(), request.max_new_tokens, length,
                            s.options.sequence_tokens_max);
  }
  if (request.deadline != 0 && request.deadline <= now) {
    return make_status(StatusCode::kDeadlineExceeded, "the deadline passed {} ns ago",
                       now - request.deadline);
  }
  if (s.table.waiting().size() >= s.options.waiting_max) {
    return resource_exhausted("{} sequences wait, the limit is {}", s.table.waiting().size(),
                              s.options.waiting_max);
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->id = request.id;
  sequence->tokens = std::move(request.tokens);
  sequence->new_tokens_max = request.max_new_tokens;
  sequence->stop_tokens = std::move(request.stop_tokens);
  sequence->deadline = request.deadline;
  // Steps hold spans into both, and must not find them moved; nor may a step allocate.
  sequence->tokens.reserve(length);
  sequence->blocks.reserve(
      cache::blocks_for(static_cast<uint32_t>(length), s.options.block_tokens));
  s.table.add(std::move(sequence));
  ++s.stats.accepted;
  return ok_status();
}

void BatchScheduler::cancel(SequenceId id, const Status& status) {
  Sequence* const sequence = impl_->table.find(id);
  if (sequence != nullptr && !sequence->ended) impl_->end_with(sequence, status);
}

void BatchScheduler::cancel_all(const Status& status) {
  const SequenceTable& table = impl_->table;
  while (!table.running().empty()) impl_->end_with(table.running().front(), status);
  while (!table.waiting().empty()) impl_->end_with(table.waiting().front(), status);
}

void BatchScheduler::tick(Nanos now) {
  impl_->table.find_expired(now, impl_->expired);
  for (const SequenceId id : impl_->expired) {
    cancel(id, make_status(StatusCode::kDeadlineExceeded,
                           "the deadline passed before sequence {} was finished", id.value));
  }
}

Nanos BatchScheduler::next_deadline() const {
  return impl_->table.next_deadline();
}

void BatchScheduler::set_active_micro_batches(uint32_t count) {
  VOLLEY_CHECK(count >= 1 && count <= impl_->options.micro_batches);
  impl_->active = count;
}

uint32_t BatchScheduler::active_micro_batches() const {
  return impl_->active;
}

const StepPlan& BatchScheduler::plan(uint32_t micro_batch) {
  Impl& s = *impl_;
  VOLLEY_CHECK(micro_batch < s.steps.size());
  Step& step = s.steps[micro_batch];
  VOLLEY_CHECK(!step.running);
  if (micro_batch >= s.active) return step.plan;
  s.rebalance();
  s.select(micro_batch, step);
  if (step.sequences.empty()) return step.plan;

  const auto older = [](const Sequence* a, const Sequence* b) { return a->order < b->order; };
  // Few sequences, nearly sorted, and both arrays move together: insertion sort.
  for (size_t i = 1; i < step.sequences.size(); ++i) {
    for (size_t j = i; j > 0 && older(step.sequences[j], step.sequences[j - 1]); --j) {
      std::swap(step.sequences[j], step.sequences[j - 1]);
      std::swap(step.plan.chunks[j], step.plan.chunks[j - 1]);
    }
  }
  uint32_t row = 0;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const Sequence& sequence = *step.sequences[i];
    Chunk& chunk = step.plan.chunks[i];
    chunk.first_row = row;
    row += chunk.row_count;
    chunk.tokens = std::span(sequence.tokens).subspan(chunk.start_position, chunk.row_count);
    chunk.blocks = sequence.blocks;
  }
  step.plan.row_count = row;
  step.running = true;
  ++s.stats.steps;
  VOLLEY_CHECK(row <= s.options.tokens_per_step_max);
  return step.plan;
}

void BatchScheduler::complete(uint32_t micro_batch, std::span<const Sampled> sampled) {
  Impl& s = *impl_;
  VOLLEY_CHECK(micro_batch < s.steps.size() && s.steps[micro_batch].running);
  Step& step = s.steps[micro_batch];
  size_t next_sample = 0;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    Sequence* sequence = step.sequences[i];
    const Chunk& chunk = step.plan.chunks[i];
    sequence->computed += chunk.row_count;
    if (!chunk.emits) continue;
    VOLLEY_CHECK(next_sample < sampled.size());
    const Sampled& sample = sampled[next_sample++];
    if (!sequence->ended) s.accept_sample(sequence, sample);
  }
  VOLLEY_CHECK(next_sample == sampled.size());
  s.close_step(step);
}

void BatchScheduler::abort_step(uint32_t micro_batch, const Status& status) {
  Impl& s = *impl_;
  VOLLEY_CHECK(micro_batch < s.steps.size() && s.steps[micro_batch].running);
  Step& step = s.steps[micro_batch];
  for (Sequence* sequence : step.sequences) {
    if (!sequence->ended) s.end_with(sequence, status);
  }
  s.close_step(step);
}

void BatchScheduler::take_outputs(std::vector<SequenceOutput>& out) {
  out.clear();
  out.swap(impl_->outputs);
}

void BatchScheduler::preempt(SequenceId id) {
  Sequence* const sequence = impl_->table.find(id);
  if (sequence == nullptr || !sequence->running) return;
  if (sequence->in_step) {
    sequence->preempt_after_step = true;
  } else {
    impl_->preempt(sequence);
  }
}

BatchScheduler::Stats BatchScheduler::stats() const {
  Stats stats = impl_->stats;
  stats.waiting = static_cast<uint32_t>(impl_->table.waiting().size());
  stats.running = static_cast<uint32_t>(impl_->table.running().size());
  stats.blocks_free = impl_->blocks.free_count();
  stats.blocks_total = impl_->blocks.block_count();
  return stats;
}

bool BatchScheduler::idle() const {
  for (const Step& step : impl_->steps) {
    if (step.running) return false;
  }
  return impl_->table.waiting().empty() && impl_->table.running().empty();
}

}  // namespace volley::scheduler
